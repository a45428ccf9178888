"""The threads that render and encode, and the bound on what waits for them.

run() ── admitted? ── no ──► Overloaded, with the time until there should be room
              │ yes: a lease
              ▼
        waiting ──► running in a thread ──► the lease ends
           │ caller cancels      │ caller cancels: the thread cannot be stopped, so its
           ▼                     ▼ place stays taken until it is done
        the lease ends
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from weir_chassis.clock import Clock
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import Overloaded
from weir_chassis.leases import Lease, LeaseLedger

T = TypeVar("T")

LEASE_KIND = "encode"
# Sooner, and refused callers would come back before anything has changed; later, and nobody waits.
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 10.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """`max_jobs` and `max_bytes` bound what waits and runs together; `max_bytes` because a job holds its request."""

    threads: int
    max_jobs: int
    max_bytes: int


class WorkPool:
    """Runs CPU work off the event loop, first come first served. Used from one event loop."""

    def __init__(self, limits: PoolLimits, leases: LeaseLedger, clock: Clock):
        self._limits, self._leases = limits, leases
        self._drain_rate = DrainRate(clock, shortest_seconds=_MIN_RETRY_S, longest_seconds=_MAX_RETRY_S)
        self._executor = ThreadPoolExecutor(limits.threads, thread_name_prefix="encode")
        self._jobs, self._bytes = 0, 0

    async def run(self, job: Callable[[], T], *, size_bytes: int, owner: str) -> T:
        """What `job` returns or raises. Raises Overloaded when there is no room for one more of this size."""
        if not self._has_room(size_bytes):
            raise Overloaded("too much is being encoded", retry_after=self._drain_rate.refuse())
        future: Future[T] = self._executor.submit(job)
        future.add_done_callback(self._releaser(self._take(size_bytes, owner)))
        return await asyncio.wrap_future(future)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits for the jobs that run; those that wait are cancelled."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        # The last jobs' threads have asked the loop to end their leases; let it.
        await asyncio.sleep(0)

    def _has_room(self, size_bytes: int) -> bool:
        """An idle pool takes a job of any size, so that no size is refused for ever."""
        fits = self._jobs < self._limits.max_jobs and self._bytes + size_bytes <= self._limits.max_bytes
        return fits or self._jobs == 0

    def _take(self, size_bytes: int, owner: str) -> Lease:
        self._jobs += 1
        self._bytes += size_bytes

        def give_back() -> None:
            self._jobs -= 1
            self._bytes -= size_bytes
            assert min(self._jobs, self._bytes) >= 0, (self._jobs, self._bytes)
            self._drain_rate.ended(1)

        return self._leases.acquire(LEASE_KIND, owner, on_release=give_back)

    def _releaser(self, lease: Lease) -> Callable[[Future[T]], None]:
        """Ends the lease on the event loop, whichever thread the future is done in."""
        loop = asyncio.get_running_loop()

        def release(_: Future[T]) -> None:
            loop.call_soon_threadsafe(lease.release)

        return release
