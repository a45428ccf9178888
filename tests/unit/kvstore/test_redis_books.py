"""Who is charged and who goes, on a real server: the script's own promises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from servers import RedisServer, redis_server
from unit.kvstore.redis_store import KEYS, KIB, audit, block, hashes, held, key_of, members, opened
from weir_kvstore.tenants import Quota, Quotas
from weir_kvstore.tiers.redis import books
from weir_kvstore.tiers.redis.tier import RedisTier

NAMESPACE = b"n" * 16


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


async def put_chain(tier: RedisTier, *numbers: int, tenant: str = "") -> None:
    """One after another; all are kept."""
    for parent, number in zip((0, *numbers), numbers, strict=False):
        assert await tier.put(*block(number, parent, tenant=tenant))


@pytest.mark.parametrize("policy", ["lru", "lfu"])
async def test_a_chain_goes_from_its_end(server: RedisServer, policy: str) -> None:
    async with opened(server, capacity_bytes=8 * KIB, policy=policy) as tier:
        await put_chain(tier, 1, 2, 3, 4, 5, 6, 7, 8)
        await put_chain(tier, 11, 12, 13)
        assert await held(tier, range(1, 20)) == [1, 2, 3, 4, 5, 11, 12, 13]
        assert tier.counters.evicted == 3
        await audit(server)


async def test_lru_keeps_what_was_asked_for(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=4 * KIB) as tier:
        await put_chain(tier, 1, 2)
        await put_chain(tier, 11, 12)
        await _seconds_pass(server)
        assert await tier.match(NAMESPACE, hashes(1, 2)) == 2
        await tier._upkeep.turn()
        await put_chain(tier, 21, 22)
        assert await held(tier, [1, 2, 11, 12, 21, 22]) == [1, 2, 21, 22]


async def test_growing_a_chain_is_using_its_beginning(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=5 * KIB) as tier:
        await put_chain(tier, 1, 2)
        await put_chain(tier, 11, 12)
        await _seconds_pass(server)
        assert await tier.put(*block(3, parent=2))
        await put_chain(tier, 21, 22)
        assert await held(tier, [1, 2, 3, 11, 12, 21, 22]) == [1, 2, 3, 21, 22]


async def test_lfu_keeps_what_is_asked_for_often(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=4 * KIB, policy="lfu") as tier:
        await put_chain(tier, 1, 2)
        for _ in range(8):
            await tier.match(NAMESPACE, hashes(1, 2))
            await tier._upkeep.turn()
        for first in range(10, 60, 10):
            await put_chain(tier, first, first + 1)
        assert await tier.match(NAMESPACE, hashes(1, 2)) == 2
        for first in range(100, 300, 10):  # what nobody asks for any more fades
            await put_chain(tier, first, first + 1)
            await tier.match(NAMESPACE, hashes(first, first + 1))
            await tier._upkeep.turn()
        assert await tier.match(NAMESPACE, hashes(1, 2)) < 2


async def test_fifo_looks_at_nothing_but_age(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=2 * KIB, policy="fifo") as tier:
        await put_chain(tier, 1)
        await _seconds_pass(server)
        await put_chain(tier, 2)
        assert await tier.match(NAMESPACE, hashes(1)) == 1
        await tier._upkeep.turn()
        await put_chain(tier, 3)
        assert await held(tier, [1, 2, 3]) == [2, 3]


async def test_who_is_at_its_quota_gives_way_to_itself(server: RedisServer) -> None:
    quotas = Quotas({"small": Quota(max_bytes=2 * KIB), "none": Quota(max_bytes=0)})
    async with opened(server, quotas=quotas) as tier:
        await put_chain(tier, 1, 2)
        for number in (11, 12, 13):
            assert await tier.put(*block(number, tenant="small"))
        assert len(await held(tier, [11, 12, 13])) == 2
        assert not await tier.put(*block(14, tenant="small", size_bytes=3 * KIB))
        assert not await tier.put(*block(15, tenant="none"))
        assert await held(tier, [1, 2]) == [1, 2]
        await tier._upkeep.turn()
        assert tier.report().tenant_bytes == {"": 2 * KIB, "small": 2 * KIB, "none": 0}
        assert (await audit(server)).tenants == {"": 2 * KIB, "small": 2 * KIB}


async def test_who_is_over_its_share_gives_way_first(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=8 * KIB) as tier:
        await put_chain(tier, 1, 2, tenant="first")  # the oldest, and within its share
        await _seconds_pass(server)
        await put_chain(tier, 11, 12, 13, 14, 15, 16, tenant="greedy")
        await put_chain(tier, 21, 22, tenant="second")
        assert (await audit(server)).tenants == {"first": 2 * KIB, "greedy": 4 * KIB, "second": 2 * KIB}
        await put_chain(tier, 17, tenant="greedy")
        assert (await audit(server)).tenants == {"first": 2 * KIB, "greedy": 4 * KIB, "second": 2 * KIB}


async def test_shares_are_by_weight(server: RedisServer) -> None:
    quotas = Quotas({"heavy": Quota(share=3)})
    async with opened(server, capacity_bytes=8 * KIB, quotas=quotas) as tier:
        for number in range(1, 9):
            assert await tier.put(*block(number, tenant="heavy"))
        for number in range(11, 19):
            assert await tier.put(*block(number, tenant="light"))
        assert (await audit(server)).tenants == {"heavy": 6 * KIB, "light": 2 * KIB}


async def test_a_put_that_nobody_ends_is_given_back(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(server, capacity_bytes=2 * KIB) as tier:
        monkeypatch.setattr(books, "_LAPSE_SECONDS", -2)
        assert await tier._books.reserve("dead", block(1, size_bytes=2 * KIB)[0]) == "reserved"
        monkeypatch.undo()
        await audit(server, puts=1)
        assert not await tier.put(*block(2)), "what is charged is charged, though nothing has been sent"
        await tier._upkeep.turn()
        await audit(server)
        assert await tier.put(*block(2))
        assert await tier._books.stage_and_commit("dead", block(1)[0], b"late") == "lost"
        assert await held(tier, [1, 2]) == [2]
        await audit(server)


async def test_what_redis_let_go_is_taken_off_the_books(server: RedisServer) -> None:
    async with opened(server) as tier:
        await put_chain(tier, 1, 2, 3)
        server.command("DEL", key_of(2))
        await tier._upkeep.turn()
        assert set((await audit(server)).blocks) == set(members(1, 3))
        assert tier.counters.expired == 1


async def test_a_dead_entry_is_no_obstacle_to_a_put(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=2 * KIB) as tier:
        await put_chain(tier, 1, 2)
        server.command("DEL", key_of(1), key_of(2))
        await put_chain(tier, 3, 4)
        assert await held(tier, [3, 4]) == [3, 4]
        assert (tier.counters.evicted, tier.counters.expired) == (0, 2)
        await audit(server)


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_books_that_redis_let_go_are_written_anew(server: RedisServer, lost: int) -> None:
    async with opened(server, capacity_bytes=4 * KIB) as tier:
        for number in (1, 2, 3):
            assert await tier.put(*block(number, parent=number - 1, tenant="acme"))
        server.command("DEL", KEYS.books[lost])
        await tier._upkeep.turn()
        assert (await audit(server)).tenants == {"acme": 3 * KIB}
        assert (await audit(server)).order == members(3, 2, 1)
        await put_chain(tier, 11, 12)
        assert (await audit(server)).total == 4 * KIB


async def test_an_order_that_outlives_its_books_names_nobody_who_went_with_them(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=4 * KIB) as tier:
        for number in (1, 2, 3):
            assert await tier.put(*block(number, tenant="acme"))
        server.command("DEL", KEYS.books[0], KEYS.books[1], key_of(2))
        await tier._upkeep.turn()
        assert set((await audit(server)).order) == set(members(1, 3))


async def test_more_than_may_be_is_adopted_and_goes(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=8 * KIB) as tier:
        await put_chain(tier, *range(1, 9))
        server.command("DEL", *KEYS.books)
    async with opened(server, capacity_bytes=3 * KIB):
        assert (await audit(server)).total == 3 * KIB


@pytest.mark.parametrize(
    "spoil",
    [("SET", "nonsense"), ("SET", "WKV1" + "x" * 200), ("RPUSH", "a list"), ("APPEND", "more")],
    ids=lambda spoil: spoil[0],
)
async def test_what_is_no_block_is_not_adopted(server: RedisServer, spoil: tuple[str, str]) -> None:
    async with opened(server) as tier:
        await put_chain(tier, 1)
        if spoil[0] != "APPEND":
            server.command("DEL", key_of(1))
        server.command(spoil[0], key_of(1), spoil[1])
        server.command("DEL", *KEYS.books)
        await tier._upkeep.turn()
        assert (await audit(server)).blocks == {}
        assert tier.counters.corrupt == 1


async def test_two_hosts_that_put_at_once_stay_within_the_bound(server: RedisServer) -> None:
    room = 20 * KIB
    async with opened(server, capacity_bytes=room) as one, opened(server, capacity_bytes=room, seed=2) as two:
        for start in range(0, 120, 20):
            numbers = range(start, start + 20)
            await asyncio.gather(
                *(tier.put(*block(number, tenant=str(number % 3))) for tier in (one, two) for number in numbers),
                one.remove([block(start)[0].address]),
                two._upkeep.turn(),
            )
            assert (await audit(server)).total <= 20 * KIB
        assert one.counters.stored + two.counters.stored >= 120
        numbers = range(120)
        assert await held(one, numbers) == await held(two, numbers)


async def _seconds_pass(server: RedisServer) -> None:
    """The order counts in seconds of the server: two blocks are told apart when it shows another one."""
    second = server.command("TIME").split(b"\r\n")[2]
    while server.command("TIME").split(b"\r\n")[2] == second:
        await asyncio.sleep(0.01)
