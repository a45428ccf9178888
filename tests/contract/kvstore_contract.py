"""What every KV store keeps, whatever is behind it. Each check takes a stub to an empty store and nothing else.

The store's capacity is at least 8 MiB, and its tests are quickest when it is no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from xxhash import xxh3_64_intdigest

from contract.kv_watch import Mirror
from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_hash import HashScope, block_hashes, join_hashes, namespace_fingerprint, scope_root
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceStub
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub

Check = Callable[["Stub"], Awaitable[None]]

MIB: Final = 1024 * 1024
_ROOT = scope_root(HashScope("tiny", "r1", "t1"))
NAMESPACE = namespace_fingerprint(_ROOT, kv_dtype="float32", kv_layout="test", block_size=4)
OTHER_NAMESPACE = namespace_fingerprint(_ROOT, kv_dtype="float16", kv_layout="test", block_size=4)


@dataclass(frozen=True)
class Sent:
    """A block as a sender has it."""

    block_hash: bytes
    parent: bytes
    payload: bytes
    checksum: int


def connect(channel: grpc.aio.Channel) -> Stub:
    return KvStoreServiceStub(channel)


def chain(num_blocks: int, size_bytes: int = 1000, seed: int = 0) -> list[Sent]:
    """A chain of blocks with bytes that no other block has."""
    random = Random(seed)
    hashes = block_hashes(_ROOT, [random.randrange(1 << 16) for _ in range(4 * num_blocks)], 4)
    blocks, parent = [], b""
    for block_hash in hashes:
        payload = random.randbytes(size_bytes)
        blocks.append(Sent(block_hash, parent, payload, xxh3_64_intdigest(payload)))
        parent = block_hash
    return blocks


def begin(namespace: bytes = NAMESPACE) -> pb.PutBlocksRequest:
    return pb.PutBlocksRequest(begin=pb.PutBegin(namespace=namespace))


def commit() -> pb.PutBlocksRequest:
    return pb.PutBlocksRequest(commit=pb.PutCommit())


def pieces(block: Sent, piece_bytes: int = 2 * MIB) -> list[pb.PutBlocksRequest]:
    return [piece(block, start, start + piece_bytes) for start in range(0, len(block.payload), piece_bytes)]


def piece(block: Sent, start: int, end: int) -> pb.PutBlocksRequest:
    chunk = pb.PutChunk(
        block_hash=block.block_hash,
        parent_block_hash=block.parent,
        payload_bytes=len(block.payload),
        offset=start,
        chunk=block.payload[start:end],
        checksum=block.checksum,
    )
    return pb.PutBlocksRequest(chunk=chunk)


async def put(stub: Stub, blocks: Iterable[Sent], namespace: bytes = NAMESPACE) -> tuple[int, int, int, int]:
    """Stored, present, corrupt, refused."""
    messages = [begin(namespace), *(message for block in blocks for message in pieces(block)), commit()]
    response = await stub.PutBlocks(iter(messages))
    return response.stored_blocks, response.present_blocks, response.corrupt_blocks, response.refused_blocks


async def match(
    stub: Stub, blocks: Sequence[Sent], namespace: bytes = NAMESPACE, seconds: float | None = None, skip: int = 0
) -> pb.MatchPrefixResponse:
    request = pb.MatchPrefixRequest(
        namespace=namespace, block_hashes=join_hashes(block.block_hash for block in blocks), skip_blocks=skip
    )
    if seconds is not None:
        request.lease_duration.CopyFrom(duration(seconds))
    return await stub.MatchPrefix(request)


async def held(stub: Stub, blocks: Sequence[Sent], namespace: bytes = NAMESPACE) -> int:
    """Leading blocks of the chain that the store has; leases nothing."""
    return (await match(stub, blocks, namespace, seconds=0)).matched_blocks


async def get(stub: Stub, lease_id: str) -> dict[bytes, bytes]:
    """Whole payloads by hash, in the order they came, each checked as a careful reader would."""
    payloads: dict[bytes, bytes] = {}
    async for response in stub.GetBlocks(pb.GetBlocksRequest(lease_id=lease_id)):
        assert 0 < len(response.chunk) <= 2 * MIB
        assert response.offset == len(payloads.get(response.block_hash, b""))
        payloads[response.block_hash] = payloads.get(response.block_hash, b"") + response.chunk
        if len(payloads[response.block_hash]) == response.payload_bytes:
            assert xxh3_64_intdigest(payloads[response.block_hash]) == response.checksum
    return payloads


async def remove(stub: Stub, blocks: Sequence[Sent], namespace: bytes = NAMESPACE) -> int:
    packed = join_hashes(block.block_hash for block in blocks)
    return (await stub.RemoveBlocks(pb.RemoveBlocksRequest(namespace=namespace, block_hashes=packed))).removed_blocks


async def release(stub: Stub, lease_id: str) -> None:
    await stub.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease_id))


async def renew(stub: Stub, lease_id: str, seconds: float) -> None:
    await stub.RenewLease(pb.RenewLeaseRequest(lease_id=lease_id, lease_duration=duration(seconds)))


async def stats(stub: Stub) -> pb.GetStatsResponse:
    return await stub.GetStats(pb.GetStatsRequest())


async def ram(stub: Stub) -> pb.TierStats:
    return (await stats(stub)).tiers[0]


def duration(seconds: float) -> Duration:
    result = Duration()
    result.FromTimedelta(timedelta(seconds=seconds))
    return result


def payloads(blocks: Iterable[Sent]) -> dict[bytes, bytes]:
    return {block.block_hash: block.payload for block in blocks}


async def fails(call: Awaitable[object], reason: str, text: str = "") -> None:
    """The call ends with this reason of the table and these words in its message."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = from_rpc_error(raised.value)
    assert (reason_name(error.reason), text in error.message) == (reason, True), error.message


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # the store may be another process: it sets no event here
            await asyncio.sleep(0.01)


async def nothing_is_left(stub: Stub) -> bool:
    found = await stats(stub)
    return (found.open_puts, found.live_leases, found.tiers[0].blocks, found.tiers[0].bytes) == (0, 0, 0, 0)


# --- what is put can be matched and read ---------------------------------------------------------------------------


async def check_put_match_get(stub: Stub) -> None:
    blocks = chain(3)
    assert await put(stub, blocks) == (3, 0, 0, 0)
    matched = await match(stub, [*blocks, *chain(1, seed=9)])
    assert (matched.matched_blocks, matched.leased_bytes) == (3, 3000)
    read = await get(stub, matched.lease_id)
    assert read == payloads(blocks)
    assert list(read) == [block.block_hash for block in blocks]
    await release(stub, matched.lease_id)
    tier = await ram(stub)
    assert (tier.blocks, tier.bytes, tier.stored, tier.hits, tier.misses) == (3, 3000, 3, 3, 1)


async def check_blocks_longer_than_a_message(stub: Stub) -> None:
    blocks = chain(2, size_bytes=2 * MIB + 5)
    assert await put(stub, blocks) == (2, 0, 0, 0)
    assert await get(stub, (await match(stub, blocks)).lease_id) == payloads(blocks)


async def check_match_stops_at_the_first_gap(stub: Stub) -> None:
    blocks = chain(4)
    await put(stub, [blocks[0], blocks[1], blocks[3]])
    assert await held(stub, blocks) == 2
    assert await put(stub, [blocks[2]]) == (1, 0, 0, 0)
    assert await held(stub, blocks) == 4


async def check_no_match_leases_nothing(stub: Stub) -> None:
    matched = await match(stub, chain(2))
    assert matched.matched_blocks == 0
    assert not matched.HasField("lease_id")
    assert (await stats(stub)).live_leases == 0


async def check_looking_leases_nothing(stub: Stub) -> None:
    await put(stub, chain(2))
    matched = await match(stub, chain(2), seconds=0)
    assert (matched.matched_blocks, matched.HasField("lease_id"), matched.leased_bytes) == (2, False, 0)
    assert (await stats(stub)).live_leases == 0


async def check_skipped_blocks_count_as_held_and_are_not_leased(stub: Stub) -> None:
    blocks = chain(4)
    await put(stub, blocks[2:])
    matched = await match(stub, blocks, skip=2)
    assert (matched.matched_blocks, matched.leased_bytes) == (4, 2000)
    assert await get(stub, matched.lease_id) == payloads(blocks[2:])
    nothing = await match(stub, blocks[:2], skip=2)
    assert (nothing.matched_blocks, nothing.HasField("lease_id")) == (2, False)


async def check_namespaces_are_apart(stub: Stub) -> None:
    await put(stub, chain(1))
    assert await held(stub, chain(1), OTHER_NAMESPACE) == 0


async def check_a_held_block_is_kept(stub: Stub) -> None:
    (first,) = chain(1)
    other = replace(first, payload=b"other", checksum=xxh3_64_intdigest(b"other"))
    assert await put(stub, [first]) == (1, 0, 0, 0)
    assert await put(stub, [other]) == (0, 1, 0, 0)
    assert await get(stub, (await match(stub, [first])).lease_id) == payloads([first])


# --- two phases ----------------------------------------------------------------------------------------------------


async def check_nothing_is_visible_before_commit(stub: Stub) -> None:
    blocks = chain(2)
    call = stub.PutBlocks()
    for message in [begin(), *pieces(blocks[0]), *pieces(blocks[1])]:
        await call.write(message)
    await eventually(lambda: _staged(stub, 2000))
    assert await held(stub, blocks) == 0
    assert (await stats(stub)).open_puts == 1
    await call.write(commit())
    await call.done_writing()
    assert (await call).stored_blocks == 2
    assert await held(stub, blocks) == 2
    assert (await stats(stub)).open_puts == 0


async def check_a_torn_put_leaves_nothing(stub: Stub) -> None:
    blocks = chain(2, size_bytes=MIB)
    call = stub.PutBlocks()
    for message in [begin(), *pieces(blocks[0]), piece(blocks[1], 0, 1000)]:
        await call.write(message)
    await eventually(lambda: _staged(stub, 2 * MIB))
    call.cancel()
    await eventually(lambda: nothing_is_left(stub))
    assert await held(stub, blocks) == 0


async def check_a_put_past_its_deadline_leaves_nothing(stub: Stub) -> None:
    async def and_then_nothing() -> AsyncIterator[pb.PutBlocksRequest]:
        for message in [begin(), *pieces(chain(1)[0])]:
            yield message
        await asyncio.sleep(60)

    await fails(stub.PutBlocks(and_then_nothing(), timeout=0.2), "DEADLINE_EXCEEDED")
    await eventually(lambda: nothing_is_left(stub))


async def check_a_put_without_commit_leaves_nothing(stub: Stub) -> None:
    response = await stub.PutBlocks(iter([begin(), *pieces(chain(1)[0])]))
    assert response == pb.PutBlocksResponse()
    assert await nothing_is_left(stub)


async def check_two_puts_of_one_block(stub: Stub) -> None:
    (block,) = chain(1)
    slow = stub.PutBlocks()
    for message in [begin(), *pieces(block)]:
        await slow.write(message)
    await eventually(lambda: _staged(stub, 1000))
    assert await put(stub, [block]) == (1, 0, 0, 0)
    await slow.write(commit())
    await slow.done_writing()
    assert (await slow).present_blocks == 1
    tier = await ram(stub)
    assert (tier.blocks, tier.bytes) == (1, 1000)


async def _staged(stub: Stub, size_bytes: int) -> bool:
    return (await ram(stub)).bytes == size_bytes


# --- what does not verify ------------------------------------------------------------------------------------------


async def check_a_bad_checksum_is_refused_by_itself(stub: Stub) -> None:
    blocks = chain(3)
    blocks[2] = replace(blocks[2], checksum=blocks[2].checksum ^ 1)
    assert await put(stub, blocks) == (2, 0, 1, 0)
    assert await held(stub, blocks) == 2
    tier = await ram(stub)
    assert (tier.bytes, tier.corrupt) == (2000, 1)


async def check_a_short_block_is_refused_by_itself(stub: Stub) -> None:
    short, whole = chain(2)
    messages = [begin(), piece(short, 0, 999), *pieces(whole), piece(short, 0, 10), commit()]
    response = await stub.PutBlocks(iter(messages))
    assert (response.stored_blocks, response.corrupt_blocks) == (1, 2)
    assert await held(stub, [whole]) == 1
    assert await held(stub, [short]) == 0


async def check_malformed_puts(stub: Stub) -> None:
    one, two = chain(2)
    big = Sent(one.block_hash, b"", bytes(2 * MIB + 1), 0)
    other_size = Sent(one.block_hash, b"", one.payload + b"x", one.checksum)

    def changed(**fields: object) -> pb.PutBlocksRequest:
        message = piece(one, 0, 1000)
        for name, value in fields.items():
            setattr(message.chunk, name, value)
        return message

    table: list[tuple[str, list[pb.PutBlocksRequest]]] = [
        ("part", [begin(), pb.PutBlocksRequest()]),
        ("chunk: the first", [piece(one, 0, 1000)]),
        ("commit: nothing", [commit()]),
        ("begin: only", [begin(), begin()]),
        ("namespace: 15 bytes", [begin(NAMESPACE[1:])]),
        ("namespace: 0 bytes", [begin(b"")]),
        ("chunk.block_hash: 0", [begin(), changed(block_hash=b"")]),
        ("chunk.parent_block_hash: 3", [begin(), changed(parent_block_hash=b"abc")]),
        ("chunk.payload_bytes: 0", [begin(), changed(payload_bytes=0)]),
        ("chunk.payload_bytes: 67108865", [begin(), changed(payload_bytes=64 * MIB + 1)]),
        ("chunk.chunk: 0 bytes", [begin(), changed(chunk=b"")]),
        ("chunk.chunk: 2097153 bytes", [begin(), piece(big, 0, 2 * MIB + 1)]),
        ("chunk.offset: 1000 bytes from 0 of 999", [begin(), changed(payload_bytes=999)]),
        ("chunk.offset: 1 bytes from 18446744073709551615", [begin(), changed(offset=2**64 - 1, chunk=b"x")]),
        ("chunk.offset", [begin(), piece(one, 500, 1000)]),  # begins in the middle
        ("chunk.offset", [begin(), piece(one, 0, 500), piece(one, 600, 1000)]),  # a hole
        ("chunk.offset", [begin(), piece(one, 0, 500), piece(one, 400, 1000)]),  # twice
        ("chunk.offset", [begin(), piece(one, 0, 500), piece(two, 0, 500), piece(one, 500, 1000)]),  # mixed
        ("chunk.offset", [begin(), piece(one, 0, 500), piece(other_size, 500, 1001)]),  # not alike
    ]
    for text, messages in table:
        await fails(stub.PutBlocks(iter(messages)), "INVALID_ARGUMENT", text)
    await eventually(lambda: nothing_is_left(stub))


async def check_malformed_requests(stub: Stub) -> None:
    block_hash, packed = chain(1)[0].block_hash, bytes(16 * 65537)

    def ask(**fields: object) -> Awaitable[object]:
        valid = {"namespace": NAMESPACE, "block_hashes": block_hash}
        return stub.MatchPrefix(pb.MatchPrefixRequest(**{**valid, **fields}))  # type: ignore[arg-type]

    await fails(ask(namespace=b"short"), "INVALID_ARGUMENT", "namespace")
    await fails(ask(block_hashes=block_hash + b"x"), "INVALID_ARGUMENT", "block_hashes: 17 bytes")
    await fails(ask(block_hashes=packed), "INVALID_ARGUMENT", "65537 blocks, the limit is 65536")
    await fails(ask(skip_blocks=2), "INVALID_ARGUMENT", "skip_blocks")
    await fails(ask(lease_duration=duration(60.001)), "INVALID_ARGUMENT", "lease_duration")
    await fails(ask(lease_duration=Duration(seconds=-1)), "INVALID_ARGUMENT", "lease_duration")
    await fails(remove(stub, chain(1), b"short"), "INVALID_ARGUMENT", "namespace")
    bad_remove = pb.RemoveBlocksRequest(namespace=NAMESPACE, block_hashes=b"x")
    await fails(stub.RemoveBlocks(bad_remove), "INVALID_ARGUMENT", "block_hashes")
    await fails(renew(stub, "x" * 65, 1), "INVALID_ARGUMENT", "lease_id")
    await fails(renew(stub, "unknown", 61), "INVALID_ARGUMENT", "lease_duration")
    await fails(renew(stub, "unknown", 0), "INVALID_ARGUMENT", "lease_duration")
    await fails(release(stub, ""), "INVALID_ARGUMENT", "lease_id")


# --- leases --------------------------------------------------------------------------------------------------------


async def check_unknown_leases(stub: Stub) -> None:
    await fails(get(stub, "unknown"), "NOT_FOUND", "lease 'unknown' not found")
    await fails(renew(stub, "unknown", 1), "NOT_FOUND")
    await release(stub, "unknown")


async def check_a_released_lease_is_unknown(stub: Stub) -> None:
    await put(stub, chain(1))
    lease_id = (await match(stub, chain(1))).lease_id
    await release(stub, lease_id)
    await release(stub, lease_id)
    await fails(get(stub, lease_id), "NOT_FOUND")
    assert (await stats(stub)).live_leases == 0


async def check_a_lapsed_lease(stub: Stub) -> None:
    await put(stub, chain(1))
    lease_id = (await match(stub, chain(1), seconds=0.05)).lease_id
    await asyncio.sleep(0.1)
    await fails(get(stub, lease_id), "LEASE_EXPIRED")
    await fails(renew(stub, lease_id, 1), "LEASE_EXPIRED")
    await release(stub, lease_id)
    found = await stats(stub)
    assert (found.live_leases, found.expired_leases) == (0, 1)


async def check_a_renewed_lease_lasts(stub: Stub) -> None:
    await put(stub, chain(1))
    lease_id = (await match(stub, chain(1), seconds=0.5)).lease_id
    await renew(stub, lease_id, 30)
    await renew(stub, lease_id, 0.001)  # never makes it shorter
    await asyncio.sleep(0.55)
    assert await get(stub, lease_id) == payloads(chain(1))


async def check_a_lease_can_be_read_twice(stub: Stub) -> None:
    await put(stub, chain(2))
    lease_id = (await match(stub, chain(2))).lease_id
    assert await get(stub, lease_id) == await get(stub, lease_id) == payloads(chain(2))


# --- room ----------------------------------------------------------------------------------------------------------


async def check_overflow_evicts_the_least_recently_used(stub: Stub) -> None:
    size_bytes = (await ram(stub)).capacity_bytes // 4
    old, used, new = (chain(2, size_bytes, seed) for seed in (1, 2, 3))
    for blocks in (old, used):
        assert await put(stub, blocks) == (2, 0, 0, 0)
    assert await held(stub, old) == 2  # looking is using, so now `used` is the older
    assert await held(stub, used) == 2
    assert await put(stub, new[:1]) == (1, 0, 0, 0)
    assert [await held(stub, blocks) for blocks in (old, used, new)] == [1, 2, 1]  # a chain goes from its end
    tier = await ram(stub)
    assert (tier.evicted, tier.blocks) == (1, 4)
    assert tier.bytes <= tier.capacity_bytes


async def check_leased_blocks_are_not_evicted(stub: Stub) -> None:
    size_bytes = (await ram(stub)).capacity_bytes // 4
    leased, others, new = (chain(2, size_bytes, seed) for seed in (1, 2, 3))
    await put(stub, leased)
    lease_id = (await match(stub, leased)).lease_id
    await put(stub, others)
    other_lease_id = (await match(stub, others)).lease_id
    assert await put(stub, new[:1]) == (0, 0, 0, 1)
    await release(stub, other_lease_id)
    for block in new:
        assert await put(stub, [block]) == (1, 0, 0, 0)
    assert await get(stub, lease_id) == payloads(leased)
    await release(stub, lease_id)
    assert (await ram(stub)).evicted == 2, "of those that nobody leased, whoever the policy names"


async def check_a_lapsed_lease_holds_no_room(stub: Stub) -> None:
    size_bytes = (await ram(stub)).capacity_bytes // 2
    old, new = chain(2, size_bytes, 1), chain(2, size_bytes, 2)
    for block in old:
        await put(stub, [block])
    await match(stub, old, seconds=0.05)
    await asyncio.sleep(0.1)
    assert await put(stub, new[:1]) == (1, 0, 0, 0)


async def check_a_block_bigger_than_the_store_is_refused(stub: Stub) -> None:
    small, *_ = chain(1)
    await put(stub, [small])
    big = chain(1, (await ram(stub)).capacity_bytes + 1, seed=1)
    assert await put(stub, big) == (0, 0, 0, 1)
    assert await held(stub, [small]) == 1  # nobody had to go for nothing
    assert (await ram(stub)).refused == 1


# --- removal -------------------------------------------------------------------------------------------------------


async def check_remove(stub: Stub) -> None:
    blocks = chain(3)
    await put(stub, blocks)
    assert await remove(stub, [blocks[2], blocks[2], *chain(1, seed=9)]) == 1
    assert await held(stub, blocks) == 2
    assert (await ram(stub)).bytes == 2000


async def check_remove_a_namespace(stub: Stub) -> None:
    await put(stub, chain(3))
    await put(stub, chain(1), OTHER_NAMESPACE)
    assert await remove(stub, []) == 3
    assert (await held(stub, chain(3)), await held(stub, chain(1), OTHER_NAMESPACE)) == (0, 1)
    assert await remove(stub, []) == 0


async def check_removed_blocks_stay_for_their_lease(stub: Stub) -> None:
    blocks = chain(2)
    await put(stub, blocks)
    lease_id = (await match(stub, blocks)).lease_id
    assert await remove(stub, []) == 2
    assert await held(stub, blocks) == 0
    assert (await ram(stub)).bytes == 2000
    assert await put(stub, blocks[:1]) == (1, 0, 0, 0)  # the address is free again
    assert await get(stub, lease_id) == payloads(blocks)
    await release(stub, lease_id)
    assert (await ram(stub)).bytes == 1000


# --- all at once ---------------------------------------------------------------------------------------------------


async def check_many_at_once(stub: Stub) -> None:
    """Twenty who put and read, of whom some leave midway; in the end all bytes are right and nothing is held."""
    chains = [chain(6, 50_000, seed) for seed in range(5)]
    await asyncio.gather(*(_come_and_go(stub, chains[seed % 5], Random(seed)) for seed in range(20)))
    await eventually(lambda: _quiet(stub))
    tier = await ram(stub)
    # A reader who left before its lease id arrived still holds its lease for the second that it asked for.
    assert (tier.blocks, tier.bytes) == (tier.stored - tier.evicted, 50_000 * tier.blocks)


async def _come_and_go(stub: Stub, blocks: Sequence[Sent], random: Random) -> None:
    for _ in range(6):
        work = asyncio.ensure_future(random.choice((_put_all, _read_all))(stub, blocks))
        if random.random() < 0.4:
            await asyncio.sleep(random.random() * 0.02)
            work.cancel()
        await asyncio.wait([work])
        assert work.cancelled() or work.exception() is None, work.exception()


async def _put_all(stub: Stub, blocks: Sequence[Sent]) -> None:
    messages = [begin(), *(message for block in blocks for message in pieces(block, 20_000)), commit()]
    response = await stub.PutBlocks(iter(messages))
    assert response.corrupt_blocks == 0


async def _read_all(stub: Stub, blocks: Sequence[Sent]) -> None:
    matched = await match(stub, blocks, seconds=1)
    if matched.matched_blocks:
        assert await get(stub, matched.lease_id) == payloads(blocks[: matched.matched_blocks])
        await release(stub, matched.lease_id)


async def _quiet(stub: Stub) -> bool:
    found = await stats(stub)
    return (found.open_puts, found.live_leases) == (0, 0)


# --- what it holds can be followed ----------------------------------------------------------------------------------


def watch(stub: Stub, **resume: int) -> Mirror:
    return Mirror(stub.WatchKvEvents(pb.WatchKvEventsRequest(**resume)))


def hashes_of(blocks: Iterable[Sent]) -> list[bytes]:
    return [block.block_hash for block in blocks]


async def check_kv_events_begin_with_a_reset_and_go_on(stub: Stub) -> None:
    early = watch(stub)
    await early.read()
    assert (early.resets, early.held) == (1, {})
    blocks = chain(3)
    await put(stub, blocks)
    await early.until_held(hashes_of(blocks))
    assert {place.block_hash: parent for place, parent in early.held.items() if place.tier == "ram"} == {
        block.block_hash: block.parent for block in blocks
    }
    assert {place.namespace for place in early.held} == {NAMESPACE}
    await remove(stub, blocks[1:2])
    await early.until_gone(hashes_of(blocks[1:2]))
    late = watch(stub)
    await late.until_held(hashes_of([blocks[0], blocks[2]]))
    assert not late.hashes & {blocks[1].block_hash}
    for mirror in (early, late):
        mirror.call.cancel()


async def check_kv_events_tell_namespaces_apart(stub: Stub) -> None:
    blocks, mirror = chain(2), watch(stub)
    await put(stub, blocks)
    await put(stub, blocks, OTHER_NAMESPACE)
    await mirror.until_held(hashes_of(blocks))
    while len({place.namespace for place in mirror.held}) < 2:
        await mirror.read()
    await stub.RemoveBlocks(pb.RemoveBlocksRequest(namespace=NAMESPACE))
    while {place.namespace for place in mirror.held} != {OTHER_NAMESPACE}:
        await mirror.read()
    assert mirror.hashes == set(hashes_of(blocks))
    mirror.call.cancel()


async def check_kv_events_tell_nothing_of_what_is_not_committed(stub: Stub) -> None:
    staged, committed = chain(2, seed=1), chain(1, seed=2)
    call = stub.PutBlocks()
    for message in [begin(), *(message for block in staged for message in pieces(block))]:
        await call.write(message)
    mirror = watch(stub)
    await put(stub, committed)
    await mirror.until_held(hashes_of(committed))
    assert mirror.hashes == set(hashes_of(committed))
    mirror.call.cancel()
    call.cancel()
    await eventually(lambda: _no_open_puts(stub))


async def _no_open_puts(stub: Stub) -> bool:
    return not (await stats(stub)).open_puts


async def check_kv_events_resume_where_they_stopped(stub: Stub) -> None:
    before, after = chain(2, seed=1), chain(2, seed=2)
    await put(stub, before)
    first = watch(stub)
    await first.until_held(hashes_of(before))
    first.call.cancel()
    await put(stub, after)
    second = watch(stub, epoch=first.epoch, from_sequence=first.sequence + 1)
    await second.until_held(hashes_of(after))
    assert (second.resets, second.hashes & first.hashes) == (0, set())
    second.call.cancel()


async def check_kv_events_of_an_unknown_position_are_reset(stub: Stub) -> None:
    blocks = chain(2)
    await put(stub, blocks)
    first = watch(stub)
    await first.until_held(hashes_of(blocks))
    first.call.cancel()
    for resume in ({"epoch": first.epoch ^ 2, "from_sequence": 1}, {"epoch": first.epoch, "from_sequence": 1 << 40}):
        mirror = watch(stub, **resume)
        await mirror.until_held(hashes_of(blocks))
        assert (mirror.resets, mirror.epoch) == (1, first.epoch)
        mirror.call.cancel()


CHECKS: Final[Sequence[Check]] = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
