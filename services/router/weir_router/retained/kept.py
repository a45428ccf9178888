"""All retained streams of this router: found by name and by idempotency key, bounded, forgotten in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from weir_chassis.clock import Clock
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import AlreadyExists, Overloaded
from weir_chassis.leases import Lease, LeaseLedger
from weir_router.metrics import RouterMetrics
from weir_router.retained.options import RetentionLimits
from weir_router.retained.stream import Name, RetainedStream

# A client should neither hammer nor give up.
_MIN_RETRY_SECONDS: Final = 0.1
_MAX_RETRY_SECONDS: Final = 60.0


class KeptStreams:
    """In order of their beginning. Each holds a lease until it is forgotten."""

    def __init__(self, limits: RetentionLimits, clock: Clock, leases: LeaseLedger, metrics: RouterMetrics):
        self._limits, self._leases, self._metrics = limits, leases, metrics
        self._drain_rate = DrainRate(clock, shortest_seconds=_MIN_RETRY_SECONDS, longest_seconds=_MAX_RETRY_SECONDS)
        self._by_name: dict[Name, tuple[RetainedStream, Lease]] = {}
        self._by_key: dict[tuple[str, str], RetainedStream] = {}

    def __iter__(self) -> Iterator[RetainedStream]:
        return iter([stream for stream, _ in self._by_name.values()])

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: Name) -> RetainedStream | None:
        held = self._by_name.get(name)
        return held[0] if held else None

    def find_key(self, tenant: str, key: str) -> RetainedStream | None:
        return self._by_key.get((tenant, key)) if key else None

    def add(self, stream: RetainedStream) -> None:
        """Raises AlreadyExists when a stream of this name is kept that has not failed; Overloaded without room."""
        earlier = self.find(stream.name)
        if earlier is not None:
            if earlier.log.error is None:
                raise already_exists(stream.name)
            self.forget(earlier)
        self._make_room()
        lease = self._leases.acquire("retained_stream", stream.name.request_id)
        self._by_name[stream.name] = stream, lease
        if stream.retention.key:
            self._by_key[stream.name.tenant, stream.retention.key] = stream
        self._show()

    def forget(self, stream: RetainedStream) -> None:
        """Nobody finds it any more; whoever reads it reads on."""
        held = self._by_name.get(stream.name)
        if held is None or held[0] is not stream:
            return
        del self._by_name[stream.name]
        held[1].release()
        self.free_key(stream)
        self._drain_rate.ended(1)
        self._show()

    def free_key(self, stream: RetainedStream) -> None:
        """The next request with its idempotency key begins anew."""
        key = (stream.name.tenant, stream.retention.key)
        if self._by_key.get(key) is stream:
            del self._by_key[key]

    def expired(self) -> Sequence[RetainedStream]:
        return [stream for stream in self if stream.expired()]

    def fit(self) -> None:
        """Within the limit of bytes: what is over goes first, oldest first; then the beginnings of the longest."""
        excess = self._bytes() - self._limits.max_bytes
        for stream in self._over():
            if excess <= 0:
                break
            excess -= stream.log.bytes
            self.forget(stream)
        for stream in sorted(self, key=lambda stream: stream.log.bytes, reverse=True):
            if excess <= 0:
                break
            before = stream.log.bytes
            stream.log.shrink(excess)
            excess -= before - stream.log.bytes
        self._metrics.retained_bytes.set(self._bytes())

    def _make_room(self) -> None:
        if len(self) < self._limits.max_streams:
            return
        oldest = next(self._over(), None)
        if oldest is None:
            message = f"{len(self)} retained requests run or are read"
            raise Overloaded(message, retry_after=self._drain_rate.refuse())
        self.forget(oldest)

    def _over(self) -> Iterator[RetainedStream]:
        return (stream for stream in self if stream.log.ended and not stream.read)

    def _bytes(self) -> int:
        return sum(stream.log.bytes for stream in self)

    def _show(self) -> None:
        self._metrics.retained_streams.set(len(self))


def already_exists(name: Name) -> AlreadyExists:
    """For a request id of the caller's own that it has used before."""
    message = f"request {name.request_id!r} is retained already: `Resume` it, or name another id"
    return AlreadyExists(name.request_id, message, metadata={"field": "weir-request-id"})
