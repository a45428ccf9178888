"""Names that stand for many workers, such as headless services: looked up again and again, all addresses of each.

A lookup that fails says nothing about the workers, so what was known stays, for as long as `keep_seconds`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Self

from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_router.fleet.membership import Place, WorkerKind

# As gRPC names them: https://grpc.github.io/grpc/core/md_doc_naming.html
SCHEME: Final = "dns:///"
# A resolver that does not answer occupies a thread until it does, and these are nobody else's.
_MAX_THREADS: Final = 4

# IP addresses of a host. Raises OSError.
Resolve = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class DnsName:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `dns:///host:port`. Raises ValueError."""
        host, _, port = text.removeprefix(SCHEME).rpartition(":")
        if not text.startswith(SCHEME) or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not {SCHEME}host:port")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a name stands for, and when that was heard, in monotonic seconds."""

    addresses: tuple[str, ...] = ()
    heard_at: float = float("-inf")

    def after(self, answer: Sequence[str] | None, now: float, keep_seconds: float) -> Lookup:
        """`answer`: None when the lookup failed."""
        if answer is not None:
            return Lookup(tuple(sorted(set(answer))), now)
        return self if now - self.heard_at < keep_seconds else Lookup((), self.heard_at)


class DnsNames:
    """`places` is where the names' workers are; `on_change` is told when it is something else."""

    def __init__(
        self,
        names: Sequence[tuple[WorkerKind, DnsName]],
        resolve: Resolve,
        clock: Clock,
        on_change: Callable[[], None],
        *,
        interval_seconds: float,
        keep_seconds: float,
    ) -> None:
        self._resolve, self._clock, self._on_change = resolve, clock, on_change
        self._interval_seconds, self._keep_seconds = interval_seconds, keep_seconds
        self._lookups = {name: Lookup() for name in names}
        self._failing: set[str] = set()

    @property
    def places(self) -> Sequence[Place]:
        return [
            Place(kind, _join(address, name.port))
            for (kind, name), known in self._lookups.items()
            for address in known.addresses
        ]

    def failing(self) -> list[str]:
        """Hosts whose newest lookup has failed."""
        return sorted(self._failing)

    async def run(self) -> NoReturn:
        """For ever. A name that is not answered holds up no other."""
        async with asyncio.TaskGroup() as tasks:
            for kind, name in self._lookups:
                tasks.create_task(self._follow(kind, name), name=f"look-up-{name.host}")
        raise AssertionError("lookups never end")

    async def _follow(self, kind: WorkerKind, name: DnsName) -> NoReturn:
        while True:
            answer: Sequence[str] | None = None
            try:
                answer = await self._resolve(name.host)
                self._failing.discard(name.host)
            except OSError as error:
                if name.host not in self._failing:  # once for as long as it lasts
                    get_logger().warning("lookup_failed", host=name.host, reason=str(error))
                self._failing.add(name.host)
            self._note((kind, name), answer)
            await self._clock.sleep(self._interval_seconds)

    def _note(self, name: tuple[WorkerKind, DnsName], answer: Sequence[str] | None) -> None:
        known = self._lookups[name]
        self._lookups[name] = known.after(answer, self._clock.monotonic(), self._keep_seconds)
        if self._lookups[name].addresses != known.addresses:
            self._on_change()


@contextmanager
def system_resolver() -> Iterator[Resolve]:
    """The machine's own, on threads of its own: A and AAAA records, whatever it is configured to ask."""
    threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="look-up")
    try:
        yield partial(_look_up, threads)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


async def _look_up(threads: ThreadPoolExecutor, host: str) -> Sequence[str]:
    ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(threads, ask)
    return [str(address[0]) for _, _, _, _, address in found]


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
