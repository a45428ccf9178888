"""What a decode worker makes of a prefill worker that is slow, wrong, gone, or gives only some of its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import grpc
import pytest
from xxhash import xxh3_64_intdigest

from weir.executor.v1 import executor_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.clock import SystemClock
from weir_chassis.errors import NotFound
from weir_chassis.metrics import Metrics
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine
from weir_executor.handoff.take_over import Offered, TakeOverLimits, TakeOvers
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.metrics import ExecutorMetrics
from weir_executor.request import GenerationRequest

_HASHES = [bytes([i]) * 16 for i in range(4)]
_LIMITS = TakeOverLimits(deadline_seconds=5.0, bytes_per_second=1e9, budget_bytes=1 << 20, max_reads=2)
_ENGINE = FakeEngine()
_REQUEST = GenerationRequest(1, [1] * 64, 5, block_hashes=_HASHES)


@dataclass
class _Prefill:
    """A prefill worker's door: `answers` are what it sends, then it raises `error` or, with `hangs`, nothing comes."""

    answers: Sequence[BlockChunk] = ()
    error: Exception | None = None
    hangs: bool = False
    reads: list[pb.ReadHandoffRequest] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    def read(self, request: pb.ReadHandoffRequest) -> _Call:
        self.reads.append(request)
        return _Call(self)

    async def ReleaseHandoff(self, request: pb.ReleaseHandoffRequest, timeout: float) -> None:
        self.released.append(request.handoff_id)


class _Call:
    def __init__(self, prefill: _Prefill) -> None:
        self._prefill = prefill

    async def __aiter__(self) -> AsyncIterator[BlockChunk]:
        prefill = self._prefill
        prefill.open += 1
        prefill.most_open = max(prefill.most_open, prefill.open)
        await asyncio.sleep(0.001)
        for answer in prefill.answers:
            yield answer
        if prefill.error is not None:
            raise prefill.error
        if prefill.hangs:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self._prefill.open -= 1


class _Channel:
    closed = False

    async def close(self, grace: float | None = None) -> None:
        self.closed = True


def block(index: int, *, checksum: int | None = None) -> BlockChunk:
    payload = bytes([100 + index]) * _ENGINE.info.block_bytes
    right = xxh3_64_intdigest(payload)
    return BlockChunk(_HASHES[index], b"", len(payload), 0, payload, right if checksum is None else checksum)


def offered(address: str = "prefill") -> Offered:
    return Offered("h", address, Namespaces(_ENGINE.info).of(b""), len(_HASHES))


@asynccontextmanager
async def taking(
    monkeypatch: pytest.MonkeyPatch, prefill: _Prefill, limits: TakeOverLimits = _LIMITS
) -> AsyncIterator[tuple[TakeOvers, Metrics, dict[str, _Channel]]]:
    monkeypatch.setattr("weir_executor.handoff.take_over.ExecutorServiceStub", lambda _: prefill)
    monkeypatch.setattr("weir_executor.handoff.take_over.read_handoff", lambda _: prefill.read)
    metrics, channels = Metrics("executor"), dict[str, _Channel]()

    def connect(address: str) -> Any:
        channels[address] = _Channel()
        return channels[address]

    take_overs = TakeOvers(
        cast("Engine", _ENGINE), connect, limits, metrics=ExecutorMetrics(metrics), clock=SystemClock()
    )
    try:
        yield take_overs, metrics, channels
    finally:
        await take_overs.close()
    assert all(channel.closed for channel in channels.values())
    assert prefill.open == 0


async def test_all_blocks_are_taken_and_the_handoff_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = _Prefill([block(i) for i in range(4)], hangs=True)
    async with taking(monkeypatch, prefill) as (take_overs, _, _):
        held = await take_overs.load(_REQUEST, offered())
        assert held is not None
        assert (held.prefix.first_block, len(held.prefix.blocks)) == (0, 4)
        assert take_overs.held_bytes == 4 * _ENGINE.info.block_bytes
        held.release()
        assert take_overs.held_bytes == 0
    assert prefill.released == ["h"]


@pytest.mark.parametrize(
    ("prefill", "blocks"),
    [
        (_Prefill(error=NotFound("h", "gone")), 0),
        (_Prefill(error=ConnectionError("a bug")), 0),
        (_Prefill([block(1)]), 0),  # not the next one
        (_Prefill([block(0, checksum=1)]), 0),
        (_Prefill([block(0), block(1), block(2, checksum=1), block(3)]), 2),
        (_Prefill([block(0)]), 1),  # the rest had gone
        (_Prefill(), 0),
        (_Prefill(hangs=True), 0),
    ],
)
async def test_what_does_not_come_right_and_in_time_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, prefill: _Prefill, blocks: int
) -> None:
    prefill.released.clear()
    async with taking(monkeypatch, prefill, replace(_LIMITS, deadline_seconds=0.05)) as (take_overs, _, _):
        held = await take_overs.load(_REQUEST, offered())
        assert (0 if held is None else len(held.prefix.blocks)) == blocks
        if held is not None:
            held.release()
        assert take_overs.held_bytes == 0
    assert prefill.released == ["h"]


async def test_a_lost_connection_leaves_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    async with taking(monkeypatch, _Prefill([block(0), block(1)], lost)) as (take_overs, metrics, _):
        held = await take_overs.load(_REQUEST, offered())
        assert held is not None
        assert len(held.prefix.blocks) == 2
        labels = {"outcome": "partly_failed"}
        assert metrics.registry.get_sample_value("weir_executor_take_overs_total", labels) == 1


async def test_one_that_is_cancelled_gives_the_handoff_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = _Prefill(hangs=True)
    async with taking(monkeypatch, prefill) as (take_overs, _, _):
        task = asyncio.create_task(take_overs.load(_REQUEST, offered()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert take_overs.held_bytes == 0
    assert prefill.released == ["h"]


async def test_as_many_are_read_at_once_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = _Prefill([block(i) for i in range(4)])
    async with taking(monkeypatch, prefill) as (take_overs, _, _):
        held = await asyncio.gather(*(take_overs.load(_REQUEST, offered()) for _ in range(9)))
        assert all(held)
    assert prefill.most_open == _LIMITS.max_reads


async def test_few_channels_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = _Prefill([block(i) for i in range(4)])
    async with taking(monkeypatch, prefill) as (take_overs, _, channels):
        for number in range(80):
            await take_overs.load(_REQUEST, offered(f"prefill-{number}"))
        assert 60 < sum(not channel.closed for channel in channels.values()) <= 66
        assert not channels["prefill-79"].closed
