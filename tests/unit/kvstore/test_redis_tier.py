"""The Redis tier under what happens to a Redis: it may miss, it is never wrong, and it comes back by itself.

What every tier keeps is in the contract of tiers; here is what only a server that hosts share can do to one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from servers import RedisServer, free_ports, redis_server
from unit.kvstore.redis_store import KEYS, KIB, NAMESPACE, audit, block, flip, hashes, held, key_of, opened
from weir_kvstore.record import Address
from weir_kvstore.tiers.redis.tier import RedisTier

# So short that a test of a stopped server need not wait, and long enough for one that runs.
IMPATIENT = 0.5


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


async def put_all(tier: RedisTier, *numbers: int) -> None:
    for number in numbers:
        assert await tier.put(*block(number, number - 1))


async def works_again(tier: RedisTier, number: int) -> None:
    """Whoever only asks and offers finds it working after a while."""
    async with asyncio.timeout(20):
        while not await tier.put(*block(number)):
            await asyncio.sleep(0.05)
    assert await held(tier, [number]) == [number]
    assert tier.report().fault == ""


async def test_what_one_host_puts_another_has(server: RedisServer) -> None:
    async with opened(server) as one, opened(server, seed=2) as two:
        await put_all(one, 1, 2, 3)
        assert await two.match(NAMESPACE, hashes(1, 2, 3, 4)) == 3
        assert await held(two, [1, 2, 3]) == [1, 2, 3]
        record, _ = block(2, 1)
        got = await two.get(record.address)
        assert got is not None
        assert got[0] == record
        assert await two.put(*block(2, 1))
        assert (two.counters.stored, one.counters.stored) == (0, 3), "it is there already"
        assert await two.remove([record.address]) == 1
        assert await one.match(NAMESPACE, hashes(1, 2, 3)) == 1


async def test_stores_of_other_names_are_apart(server: RedisServer) -> None:
    async with opened(server) as one, opened(server, name="other") as two:
        await put_all(one, 1)
        assert await two.match(NAMESPACE, hashes(1)) == 0
        assert await two.remove_namespace(NAMESPACE) == 0
        assert await held(one, [1]) == [1]


async def test_a_chain_longer_than_one_look(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=64 * KIB * KIB, seconds=10) as tier:
        for first in range(1, 4200, 100):
            numbers = range(first, min(first + 100, 4200))
            await asyncio.gather(*(tier.put(*block(number, number - 1, size_bytes=8)) for number in numbers))
        chain = hashes(*range(1, 6000))
        assert await tier.match(NAMESPACE, chain) == 4199
        await tier.remove([Address(NAMESPACE, chain[4095])])
        assert await tier.match(NAMESPACE, chain) == 4095
        assert await tier.match(NAMESPACE, chain[:2048]) == 2048
        assert await tier.remove_namespace(NAMESPACE) == 4198
        assert (await audit(server)).total == 0


async def test_a_server_that_was_killed_is_used_again(server: RedisServer) -> None:
    async with opened(server, seconds=IMPATIENT) as tier:
        await put_all(tier, 1, 2)
        server.kill()
        assert await held(tier, [1, 2]) == []
        assert await tier.match(NAMESPACE, hashes(1, 2)) == 0
        assert not await tier.put(*block(3))
        assert await tier.remove_namespace(NAMESPACE) == 0
        assert tier.report().fault
        server.start()
        await works_again(tier, 4)
        assert await held(tier, [1, 2]) == [], "this server keeps nothing over a restart"
        await audit(server)


async def test_killed_in_the_middle_of_everything(server: RedisServer) -> None:
    """Nothing raises, and what is read while it dies and comes back is right (`held` looks)."""
    async with opened(server, seconds=IMPATIENT) as tier:

        async def reader() -> None:
            while True:
                await held(tier, range(1, 9))
                await tier.match(NAMESPACE, hashes(*range(1, 9)))

        async def writer(first: int) -> None:
            while True:
                for number in range(first, 9, 2):
                    await tier.put(*block(number, number - 1, size_bytes=16 * KIB))

        tasks = [asyncio.create_task(work) for work in (reader(), reader(), writer(1), writer(2))]
        for _ in range(2):
            await asyncio.sleep(0.1)
            server.kill()
            server.start()
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await works_again(tier, 20)


async def test_a_server_that_hangs_costs_its_time_limit_and_then_nothing(server: RedisServer) -> None:
    async with opened(server, seconds=IMPATIENT) as tier:
        await put_all(tier, 1)
        server.signal(signal.SIGSTOP)
        for _ in range(3):
            assert await held(tier, [1]) == []
        assert "no answer within 0.5 s" in tier.report().fault
        begun = time.monotonic()
        for _ in range(100):
            assert await held(tier, [1]) == []
            assert not await tier.put(*block(2))
        assert time.monotonic() - begun < 30, "two hundred time limits would be a hundred seconds"
        server.signal(signal.SIGCONT)
        await works_again(tier, 3)
        assert await held(tier, [1]) == [1]


async def test_an_answer_that_comes_too_late_is_nobody_elses(server: RedisServer) -> None:
    """A connection on which a reply is still to come is not used again."""
    async with opened(server, connections=1, seconds=IMPATIENT) as tier:
        await put_all(tier, 1, 2, 3)
        server.signal(signal.SIGSTOP)
        gone = asyncio.create_task(tier.get(block(1)[0].address))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert await held(tier, [2]) == []
        server.signal(signal.SIGCONT)
        for number in (2, 3, 1):
            assert await held(tier, [number]) == [number]


async def test_a_server_without_memory_is_read_and_takes_nothing() -> None:
    with redis_server(maxmemory="3mb", maxmemory_policy="noeviction") as server:
        async with opened(server, capacity_bytes=64 * KIB * KIB) as tier:
            stored = [number for number in range(1, 30) if await tier.put(*block(number, size_bytes=256 * KIB))]
            assert 0 < len(stored) < 29
            assert "used memory" in tier.report().fault
            for _ in range(5):
                assert not await tier.put(*block(40, size_bytes=256 * KIB))
                await tier._upkeep.turn()
                assert await held(tier, stored) == stored
            assert tier.counters.refused >= 5
            server.command("CONFIG", "SET", "maxmemory", "0")
            await works_again(tier, 40)
            await audit(server)


async def test_a_server_that_evicts_by_itself() -> None:
    """The books are right again after a look at them, whatever it let go, the books themselves too."""
    with redis_server(maxmemory="3mb", maxmemory_policy="allkeys-random") as server:
        async with opened(server, capacity_bytes=64 * KIB * KIB) as tier:
            for number in range(1, 60):
                await tier.put(*block(number, size_bytes=64 * KIB))
            assert tier.report().fault == ""
            server.command("CONFIG", "SET", "maxmemory", "0")
            await tier._upkeep.turn()
            books = await audit(server)
            assert 0 < len(books.blocks) < 59
            assert len(await held(tier, range(1, 60))) == len(books.blocks)


async def test_a_wrong_password() -> None:
    with redis_server(requirepass="right") as server:
        async with opened(server) as tier:
            assert not await tier.put(*block(1))
            assert await held(tier, [1]) == []
            fault = tier.report().fault
            assert "uthentication" in fault or "NOAUTH" in fault
        async with opened(server, url=f"unix://:wrong@{server.socket_path}") as tier:
            assert not await tier.put(*block(1))
            assert tier.report().fault
            assert "wrong@" not in tier.report().fault
        async with opened(server, url=f"unix://:right@{server.socket_path}") as tier:
            await put_all(tier, 1)
            assert await held(tier, [1]) == [1]


async def test_flushall_is_a_miss_and_begins_anew(server: RedisServer) -> None:
    async with opened(server, capacity_bytes=4 * KIB) as tier:
        await put_all(tier, 1, 2, 3)
        server.command("FLUSHALL")
        assert await tier.match(NAMESPACE, hashes(1, 2, 3)) == 0
        assert await held(tier, [1, 2, 3]) == []
        await put_all(tier, 1, 2, 3, 4, 5)
        assert (await audit(server)).total == 4 * KIB


async def test_flushall_between_the_phases_of_a_put(server: RedisServer) -> None:
    async with opened(server) as tier:
        record, payload = block(1)
        assert await tier._books.reserve("token", record) == "reserved"
        server.command("FLUSHALL")
        assert await tier._books.stage_and_commit("token", record, payload) == "lost"
        assert await held(tier, [1]) == []
        assert server.command("KEYS", "*staged*") == b"*0\r\n"
        await audit(server)


async def test_forgotten_scripts_are_sent_again(server: RedisServer) -> None:
    async with opened(server) as tier:
        await put_all(tier, 1)
        server.command("SCRIPT", "FLUSH")
        assert await tier._books.reserve("token", block(2)[0]) == "reserved"
        server.command("SCRIPT", "FLUSH")
        assert await tier._books.stage_and_commit("token", block(2)[0], b"whatever") == "stored"


@pytest.mark.parametrize("offset", [0, 5, 10, 30, 45, 60, 70, 85, -1, -KIB])
async def test_a_bit_that_flipped_anywhere(server: RedisServer, offset: int) -> None:
    async with opened(server) as tier:
        await put_all(tier, 1, 2, 3)
        flip(server, block(2)[0].address, offset)
        assert await held(tier, [1, 2, 3]) == [1, 3]
        assert tier.counters.corrupt == 1
        assert await tier.match(NAMESPACE, hashes(1, 2, 3)) == 1
        await put_all(tier, 2)
        assert await held(tier, [1, 2, 3]) == [1, 2, 3]
        await audit(server)


@pytest.mark.parametrize(
    "spoil",
    [
        ("SET", key_of(2), "short"),
        ("SET", key_of(2), ""),
        ("RENAME", key_of(1), key_of(2)),  # another block's record and payload
        ("APPEND", key_of(2), "more"),
        ("SETRANGE", key_of(2), "100000", "\0"),
        ("DEL", key_of(2)),
    ],
    ids=lambda spoil: " ".join((spoil[0], *spoil[2:])),
)
async def test_a_value_that_is_not_what_was_put(server: RedisServer, spoil: tuple[str, ...]) -> None:
    async with opened(server) as tier:
        await put_all(tier, 1, 2, 3)
        server.command(*spoil)
        assert 2 not in await held(tier, [1, 2, 3])
        await put_all(tier, 1, 2, 3)
        assert await held(tier, [1, 2, 3]) == [1, 2, 3]
        await tier._upkeep.turn()
        await audit(server)


async def test_a_key_of_another_kind_is_no_failure_of_the_server(server: RedisServer) -> None:
    async with opened(server) as tier:
        await put_all(tier, 1, 2)
        server.command("DEL", key_of(2))
        server.command("RPUSH", key_of(2), "a list")
        for _ in range(5):
            assert await held(tier, [1, 2]) == [1]
        assert tier.report().fault == ""
        await put_all(tier, 2)
        assert await held(tier, [1, 2]) == [1, 2]


async def test_a_lifetime_is_the_servers_to_end(server: RedisServer) -> None:
    async with opened(server, ttl_seconds=0.3) as tier:
        await put_all(tier, 1, 2)
        assert await tier.match(NAMESPACE, hashes(1, 2)) == 2
        await asyncio.sleep(0.35)
        assert await tier.match(NAMESPACE, hashes(1, 2)) == 0
        await tier._upkeep.turn()
        assert (tier.counters.expired, tier.report().blocks, tier.report().bytes) == (2, 0, 0)
        await audit(server)


async def test_a_node_of_a_cluster_takes_its_scripts() -> None:
    """Every key that a script touches is in the slot of those that it names, else the node would refuse it."""
    port = next(port for port in free_ports(40) if port < 55_000)  # nodes talk to each other 10000 above
    with redis_server(cluster_enabled="yes", port=str(port)) as server:
        server.command("CLUSTER", "ADDSLOTS", *map(str, range(16_384)))
        async with opened(server, capacity_bytes=2 * KIB) as tier:
            await works_again(tier, 1)  # a moment passes before it believes that it is a cluster
            await put_all(tier, 2, 3)
            assert tier.counters.evicted == 1
            assert await tier.match(NAMESPACE, hashes(1)) == 1
            assert await tier.remove_namespace(NAMESPACE) == 2
        assert server.command("CLUSTER", "KEYSLOT", KEYS.books[0]) == server.command("CLUSTER", "KEYSLOT", key_of(1))


async def test_what_a_restarted_store_still_owed_is_right_and_goes_by_its_bounds(server: RedisServer) -> None:
    """It forgets the debt, not the block: that is still verified, still charged, and ends with its lifetime."""
    async with opened(server, seconds=IMPATIENT, ttl_seconds=2.0) as tier:
        await put_all(tier, 1, 2)
        server.signal(signal.SIGSTOP)
        assert await tier.remove([block(1)[0].address]) == 0
        assert len(tier._removals) == 1
    server.signal(signal.SIGCONT)
    async with opened(server, capacity_bytes=2 * KIB, ttl_seconds=2.0) as tier:
        assert await held(tier, [1, 2]) in ([1, 2], [2]), (
            "right, or gone: the server may have heard the removal after all"
        )
        books = await audit(server)
        assert books.total == KIB * len(books.blocks), "what is left is charged, so that max_bytes bounds it"
        for number in books.blocks:
            assert 0 < int(server.command("PTTL", f"{KEYS.prefix}block:{number}")[1:]) <= 2000
        await put_all(tier, 3, 4)
        assert (await audit(server)).total <= 2 * KIB, "and what is newer pushes it out"
        async with asyncio.timeout(20):
            while await held(tier, [1, 2, 3, 4]):
                await asyncio.sleep(0.05)


async def test_what_a_killed_store_left_half_put_lapses_by_itself(server: RedisServer) -> None:
    async with opened(server) as tier:
        assert await tier._books.reserve("token", block(1)[0]) == "reserved"
        server.command("SET", KEYS.staged("token"), "half of it", "EX", "60")
    async with opened(server) as tier:
        await audit(server, puts=1)
        assert await held(tier, [1]) == []
        assert 0 < int(server.command("PTTL", KEYS.staged("token"))[1:]) <= 60_000
        field = "put:token"
        size, _, tenant = server.command("HGET", KEYS.books[0], field).split(b"\r\n")[1].split(b" ", 2)
        server.command("HSET", KEYS.books[0], field, b" ".join((size, b"1", tenant)))  # its time is over
        await tier._upkeep.turn()
        assert (await audit(server)).total == 0, "the reservation is charged no more"
