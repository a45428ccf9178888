"""Streams that routers share: those run here are told to Redis as they grow, those run elsewhere followed from there.

    run here ── log ── new entries, every so often, all streams in one round trip ──▶ Redis
    read here ◀── log ◀── new entries, likewise ── Redis ◀── the router that runs it
                           └─ its lease has lapsed: it is taken over, and runs here from now on

What this router keeps by itself does not depend on Redis: when that is away or slow, requests run as before, and their
streams are found here only. A stream that was taken over meanwhile ends here as soon as that is heard: it writes
nothing that is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from weir.router.v1.retained_pb2 import RetainedPrompt, RetainedRequest
from weir_chassis.clock import Clock
from weir_chassis.errors import Cancelled, NotFound, WorkerLost
from weir_chassis.store_link import StoreLink
from weir_chassis.telemetry import get_logger
from weir_router.metrics import RouterMetrics
from weir_router.regions import Residency
from weir_router.retained.redis.logs import Append, Appended, Begin, Read, SharedLogs, hashed
from weir_router.retained.sharing import Began, Found, Keeper
from weir_router.retained.stream import Name, RetainedStream

T = TypeVar("T")

# Of one stream in one round trip, so that a long one does not hold up the others; and of all of them.
READ_ENTRIES: Final = 256
_MAX_ROUND_TRIP_BYTES: Final = 8 << 20
# How late the owner of a stream that says nothing hears that it is cancelled or read elsewhere.
_MAX_TOUCH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SharingLimits:
    """Seconds. `flush`: between round trips. `timeout`: for one. `lease`: a router that is silent so long is dead."""

    flush: float
    lease: float
    timeout: float

    @property
    def touch(self) -> float:
        """How often a lease is renewed: twice in vain, and it still holds. It brings what others want of the stream."""
        return min(_MAX_TOUCH_SECONDS, self.lease / 3)


@dataclass(slots=True)
class _Owned:
    """`sent`: entries that are there. `prompt`: still to be told."""

    name: str
    epoch: int
    sent: int
    touched_at: float
    prompt: bytes = b""


@dataclass(slots=True)
class _Followed:
    name: str
    heard_at: float


class SharedStreams:
    """A `Sharing`. `keeper` is set by whoever keeps the streams, before anything is shared."""

    keeper: Keeper

    def __init__(
        self,
        logs: SharedLogs,
        link: StoreLink,
        limits: SharingLimits,
        *,
        region: str = "",
        clock: Clock,
        metrics: RouterMetrics,
    ):
        """`region`: where Redis is; empty: nobody has said."""
        self._logs, self._link, self._limits, self._region = logs, link, limits, region
        self._clock, self._metrics = clock, metrics
        self._owned: dict[RetainedStream, _Owned] = {}
        self._followed: dict[RetainedStream, _Followed] = {}
        self._forgotten: list[_Owned] = []

    # What is run here.

    async def begin(self, stream: RetainedStream, request: RetainedRequest, residency: Residency) -> Began:
        """Before it is run. Where that cannot be told now, it is run, and told when it can be.

        What may not go to where Redis is, is kept by this router alone.
        """
        if not residency.allows(self._region):
            self._metrics.unshared_streams.labels("region").inc()
            return Began(True)
        name, key = _shared_name(stream.name), stream.retention.key
        begin = Begin(
            name=name,
            kept_ms=self._kept_ms(stream),
            request=request.SerializeToString(),
            request_id=stream.name.request_id,
            key=hashed("key", stream.name.tenant, key) if key else "",
            fingerprint=stream.retention.fingerprint,
        )
        began = await self._ask(partial(self._logs.begin, begin))
        if began is None or began.began:
            self._own(stream, _Owned(name, 1, 0, self._clock.monotonic()))
            stream.reader_number = 0
        return began or Began(True)

    def _own(self, stream: RetainedStream, owned: _Owned) -> None:
        self._owned[stream] = owned
        stream.heard_after = 2 * self._limits.touch

    def note_prompt(self, stream: RetainedStream, prompt: RetainedPrompt) -> None:
        if (owned := self._owned.get(stream)) is not None:
            owned.prompt = prompt.SerializeToString()

    def owns(self, stream: RetainedStream) -> bool:
        return stream in self._owned

    async def fail(self, stream: RetainedStream) -> None:
        if (owned := self._owned.get(stream)) is not None:
            await self._ask(partial(self._logs.fail, owned.name, owned.epoch))

    def forget(self, stream: RetainedStream) -> None:
        """Nobody is to find it any more: said with the next round trip."""
        if (owned := self._owned.pop(stream, None)) is not None:
            self._forgotten.append(owned)

    async def tell_forgotten(self) -> None:
        """What cannot be told lapses by itself."""
        forgotten, self._forgotten = self._forgotten, []
        for owned in forgotten:
            await self._ask(partial(self._logs.forget, owned.name, owned.epoch))

    # What is run elsewhere.

    async def attend(self, name: Name) -> int | None:
        """Whoever reads it elsewhere is dismissed."""
        return await self._ask(partial(self._logs.attend, _shared_name(name)))

    async def find(self, name: Name) -> Found | None:
        """Its beginning. None: whether there is one cannot be told now."""
        return await self._ask(partial(self._logs.read, self._read(_shared_name(name), 0)))

    def follow(self, stream: RetainedStream, name: Name, found: Found | None = None) -> None:
        """Its log is that of `name`, as it grows, for as long as it is read here."""
        self._followed[stream] = _Followed(_shared_name(name), self._clock.monotonic())
        if found is not None:
            self._load(stream, found)

    async def cancel(self, name: Name) -> bool | None:
        """False: there is none. None: that cannot be told now."""
        return await self._ask(partial(self._logs.cancel, _shared_name(name)))

    # The round trips.

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._clock.sleep(self._limits.flush)
            await self.sync()

    async def sync(self) -> None:
        """One round trip, if there is anything to tell or to ask."""
        self._stop_following()
        self._forget_cut_logs()
        await self.tell_forgotten()
        appends, reads = self._appends(), self._reads()
        if not appends and not reads:
            return
        answer = await self._ask(partial(self._logs.sync, list(appends.values()), list(reads.values())))
        if answer is None:
            self._unheard()
            return
        for stream, appended in zip(appends, answer[0], strict=True):
            self._note(stream, appends[stream], appended)
        for stream, found in zip(reads, answer[1], strict=True):
            await self._hear(stream, found)

    async def close(self) -> None:
        """Tells what is left to tell, and gives up what still runs, so that another router takes it over at once."""
        await self.sync()
        for stream, owned in self._owned.items():
            if not stream.log.ended:
                await self._ask(partial(self._logs.release, owned.name, owned.epoch))
        self._owned.clear()
        self._followed.clear()

    def _appends(self) -> dict[RetainedStream, Append]:
        now, room = self._clock.monotonic(), _MAX_ROUND_TRIP_BYTES
        appends: dict[RetainedStream, Append] = {}
        for stream, owned in self._owned.items():
            is_due = now - owned.touched_at >= self._limits.touch
            if room > 0 and (is_due or owned.prompt or len(stream.log) > owned.sent):
                appends[stream] = append = self._append(stream, owned)
                room -= sum(map(len, append.entries))
        return appends

    def _append(self, stream: RetainedStream, owned: _Owned) -> Append:
        entries = [data for data in stream.log.read(owned.sent, READ_ENTRIES) if data is not None]
        is_all = owned.sent + len(entries) == len(stream.log)
        state = _state(stream) if is_all and stream.log.ended else ""
        return Append(owned.name, owned.epoch, self._kept_ms(stream), owned.sent, entries, owned.prompt, state)

    def _reads(self) -> dict[RetainedStream, Read]:
        return {stream: self._read(followed.name, len(stream.log)) for stream, followed in self._followed.items()}

    def _note(self, stream: RetainedStream, append: Append, appended: Appended) -> None:
        owned = self._owned.get(stream)
        if owned is None:
            return
        if appended.outcome != "kept":
            self._lose(stream, appended.outcome)
            return
        owned.sent, owned.touched_at = append.position + len(append.entries), self._clock.monotonic()
        if owned.prompt == append.prompt:
            owned.prompt = b""
        if append.state:
            del self._owned[stream]
        stream.note_reader(appended.reader)
        if appended.read_elsewhere:
            stream.read_elsewhere_until = self._clock.monotonic() + self._limits.lease
        if appended.cancelled:
            stream.cancel(Cancelled("the request was cancelled by CancelRequest"))

    def _lose(self, stream: RetainedStream, outcome: str) -> None:
        """Another router runs it now; or Redis has lost it, and it is found here only."""
        del self._owned[stream]
        self._metrics.unshared_streams.labels(outcome).inc()
        get_logger().warning("retained_stream_unshared", cause=outcome, stream=stream.name.request_id)
        if outcome == "fenced":
            self.keeper.let_go(stream, Cancelled("another router goes on with this stream: `Resume` it there"))

    async def _hear(self, stream: RetainedStream, found: Found) -> None:
        if stream.log.ended or stream not in self._followed:
            return
        if found.state == "gone":
            self.keeper.let_go(stream, NotFound(stream.name.request_id, "the stream is kept no longer"))
            return
        self._load(stream, found)
        stream.note_reader(found.reader)
        if found.owned or found.entries or stream.log.ended or not stream.read_here:
            return
        if found.state == "running":
            await self._take_over(stream)
        else:  # its router was lost with its last entries
            self.keeper.let_go(stream, WorkerLost("the router that ran this request was lost"))

    def _load(self, stream: RetainedStream, found: Found) -> None:
        self._followed[stream].heard_at = self._clock.monotonic()
        for data in found.entries:
            stream.log.load(data)
        if stream.log.ended:
            stream.note_end()
            del self._followed[stream]
        stream.wake()

    async def _take_over(self, stream: RetainedStream) -> None:
        """Its router is not heard of any more."""
        followed = self._followed[stream]
        taken = await self._ask(partial(self._logs.take_over, followed.name))
        if taken is None:
            return  # by another, or nobody knows: it is followed on
        del self._followed[stream]
        if not await self._read_to_end(stream, followed.name):
            self.keeper.let_go(stream, _away())  # the lease lapses, and whoever asks next takes it over
            return
        self._own(stream, _Owned(followed.name, taken.epoch, len(stream.log), self._clock.monotonic()))
        get_logger().info("retained_stream_taken_over", stream=stream.name.request_id, entries=len(stream.log))
        if taken.cancelled:
            stream.end(Cancelled("the request was cancelled by CancelRequest"))
            return
        prompt = RetainedPrompt.FromString(taken.prompt) if taken.prompt else None
        self.keeper.go_on(stream, RetainedRequest.FromString(taken.request), prompt)

    async def _read_to_end(self, stream: RetainedStream, name: str) -> bool:
        """Nobody writes to it now."""
        while True:
            found = await self._ask(partial(self._logs.read, self._read(name, len(stream.log))))
            if found is None or found.state == "gone":
                return False
            if not found.entries:
                return True
            for data in found.entries:
                stream.log.load(data)

    def _stop_following(self) -> None:
        """What nobody reads here any more. What is over is all here, and kept as long as any other."""
        for stream in [stream for stream in self._followed if not stream.read_here or stream.log.ended]:
            del self._followed[stream]
            if not stream.log.ended:
                self.keeper.let_go(stream, Cancelled("nobody reads it here"))

    def _forget_cut_logs(self) -> None:
        """A log that has lost its beginning cannot be gone on with elsewhere, nor read from there."""
        for stream in [stream for stream in self._owned if not stream.log.whole]:
            self._metrics.unshared_streams.labels("too_large").inc()
            self.forget(stream)

    def _unheard(self) -> None:
        """Whoever reads what is run elsewhere is told in time, and may ask another router."""
        since = self._clock.monotonic() - 2 * self._limits.lease
        for stream in [stream for stream, followed in self._followed.items() if followed.heard_at < since]:
            del self._followed[stream]
            self.keeper.let_go(stream, _away())

    def _read(self, name: str, position: int) -> Read:
        return Read(name, position, round(1000 * self._limits.lease))

    def _kept_ms(self, stream: RetainedStream) -> int:
        return max(1, round(1000 * (stream.retention.seconds + (0 if stream.log.ended else self._limits.lease))))

    async def _ask(self, work: Callable[[], Awaitable[T]]) -> T | None:
        answer = await self._link.ask(work, otherwise=None, seconds=self._limits.timeout)
        self._metrics.retained_store_up.set(not self._link.fault)
        return answer


def _shared_name(name: Name) -> str:
    return hashed("stream", name.tenant, name.request_id)


def _state(stream: RetainedStream) -> str:
    error = stream.log.error
    if error is None:
        return "done"
    return "retry" if error.row.retryable else "failed"


def _away() -> WorkerLost:
    return WorkerLost("the store of retained streams does not answer")
