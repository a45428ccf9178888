"""A block of several ranks: all parts of it, or it is a miss; and every lease is given back, whatever fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import grpc
import pytest

from fakes.in_process_store import StoreError
from weir_executor.kv_transfer.hashes import shard_namespace
from weir_executor.kv_transfer.plan import TierRange
from weir_executor.kv_transfer.shards import ShardedTransport, shard_names
from weir_executor.kv_transfer.transport import Match, Payload, Put, PutResult
from weir_executor.step_output import FullBlock

SPACE = bytes(16)
HASHES = [bytes([i]) * 16 for i in range(4)]


class Inner:
    """`held`: leading blocks by the part's namespace; None: it does not answer."""

    def __init__(self, held: Sequence[int | None]) -> None:
        names = shard_names(len(held))
        self.held = {shard_namespace(SPACE, name): blocks for name, blocks in zip(names, held, strict=True)}
        self.leases: dict[str, int] = {}
        self.released: list[str] = []
        self.puts: list[Put] = []
        self.release_fails = False
        self.batch = 1

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        held = self.held[namespace]
        if held is None:
            raise StoreError(grpc.StatusCode.UNAVAILABLE)
        if held <= skip_blocks:
            return Match(held, None)
        rank = list(self.held).index(namespace)
        self.leases[f"lease-{rank}"] = rank
        return Match(held, f"lease-{rank}", [TierRange(held - skip_blocks, "ram")])

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        rank = self.leases[lease_id]
        for begin in range(0, len(wanted), self.batch + rank):  # each part at its own pace
            yield [bytes([16 * rank + each[0]]) * block_bytes for each in wanted[begin : begin + self.batch + rank]]

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        self.puts.append(put)
        return PutResult(len(put.blocks) - (len(self.puts) == 2), 0, 0, len(self.puts) == 2)

    async def release(self, lease_id: str, *, timeout: float) -> None:
        self.released.append(lease_id)
        if self.release_fails and lease_id == "lease-0":
            raise StoreError(grpc.StatusCode.UNAVAILABLE)

    async def close(self) -> None:
        self.released.append("closed")


async def match(inner: Inner, skip_blocks: int = 0) -> Match:
    transport = ShardedTransport(inner, shard_names(len(inner.held)))
    return await transport.match(SPACE, HASHES, skip_blocks=skip_blocks, block_size=16, timeout=1)


def test_one_rank_has_no_parts() -> None:
    assert shard_names(1) == [""]
    assert shard_namespace(SPACE, "") == SPACE
    assert len({shard_namespace(SPACE, name) for name in (*shard_names(2), *shard_names(3), "")}) == 6


async def test_it_is_matched_as_far_as_every_part_is_held() -> None:
    found = await match(Inner([4, 2, 3]), skip_blocks=1)
    assert (found.matched_blocks, found.ranges) == (2, [TierRange(1, "ram")])


async def test_the_parts_of_a_block_come_together_whatever_their_pace() -> None:
    inner = Inner([4, 4])
    transport, found = ShardedTransport(inner, shard_names(2)), await match(inner)
    assert found.lease_id is not None
    came = [list(each) async for each in transport.get(found.lease_id, HASHES, block_bytes=4, timeout=1)]
    assert [payload for each in came for payload in each] == [bytes([i, i, 16 + i, 16 + i]) for i in range(4)]
    await transport.release(found.lease_id, timeout=1)
    assert inner.released == ["lease-0", "lease-1"]


@pytest.mark.parametrize("held", [[4, 0], [4, None]])
async def test_what_was_leased_is_given_back_when_a_part_is_missing(held: list[int | None]) -> None:
    inner = Inner(held)
    if None in held:
        with pytest.raises(grpc.RpcError):
            await match(inner)
    else:
        assert await match(inner) == Match(0, None)
    assert inner.released == ["lease-0"]


async def test_all_leases_are_given_back_though_one_cannot_be() -> None:
    inner = Inner([4, 4, 4])
    found, inner.release_fails = await match(inner), True
    assert found.lease_id is not None
    transport = ShardedTransport(inner, shard_names(3))
    with pytest.raises(grpc.RpcError):
        await transport.release(found.lease_id, timeout=1)
    assert inner.released == ["lease-0", "lease-1", "lease-2"]
    await transport.close()
    assert inner.released[-1] == "closed"


async def test_a_block_is_put_part_by_part_and_the_worst_counts() -> None:
    inner = Inner([0, 0])
    blocks = [FullBlock(SPACE, each, b"", each[:1] * 3 + b"z" * 3) for each in HASHES]
    result = await ShardedTransport(inner, shard_names(2)).put(Put(SPACE, blocks), timeout=1)
    assert result == PutResult(3, 0, 0, 1)
    assert [put.namespace for put in inner.puts] == list(inner.held)
    assert [put.blocks[2].payload for put in inner.puts] == [b"\x02\x02\x02", b"zzz"]
