"""The script in a real Redis: leases, fences, and answers that were lost on their way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from servers import RedisServer, redis_server
from weir_chassis.redis import close_client, open_client
from weir_chassis.store_link import Refused
from weir_router.retained.redis.logs import Append, Begin, Read, SharedLogs, hashed


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.command("FLUSHALL")
    return running


@asynccontextmanager
async def logs(server: RedisServer, owner: str = "a", lease_ms: int = 60_000) -> AsyncIterator[SharedLogs]:
    client = open_client(server.url, connections=2)
    try:
        yield SharedLogs(client, "test", owner, lease_ms, read_entries=3)
    finally:
        await close_client(client)


def begin(name: str = "n", key: str = "", fingerprint: bytes = b"f") -> Begin:
    return Begin(name, 60_000, b"request", f"id of {name}", key, fingerprint)


def append(position: int, *entries: bytes, epoch: int = 1, state: str = "") -> Append:
    return Append("n", epoch, 60_000, position, entries, b"prompt", state)


async def outcome(of: SharedLogs, wanted: Append) -> str:
    return (await of.sync([wanted], []))[0][0].outcome


async def test_what_is_told_twice_because_an_answer_was_lost_is_there_once(server: RedisServer) -> None:
    async with logs(server) as mine:
        assert (await mine.begin(begin())).began
        assert await outcome(mine, append(0, b"0", b"1")) == "kept"
        assert await outcome(mine, append(0, b"0", b"1", b"2")) == "kept"
        assert await outcome(mine, append(3)) == "kept"
        assert await outcome(mine, append(5, b"5")) == "gone"  # entries before it were lost
        assert (await mine.read(Read("n", 0, 0))).entries == [b"0", b"1", b"2"]
        assert (await mine.read(Read("n", 1, 0))).entries == [b"1", b"2"]


async def test_whoever_lost_its_stream_writes_nothing(server: RedisServer) -> None:
    async with logs(server, lease_ms=1) as mine, logs(server, "b") as other:
        await mine.begin(begin())
        await outcome(mine, append(0, b"0"))
        taken = None
        while taken is None:  # a millisecond
            taken = await other.take_over("n")
        assert (taken.epoch, taken.request, taken.prompt, taken.cancelled) == (2, b"request", b"prompt", False)
        assert await outcome(mine, append(1, b"wrong")) == "fenced"
        await mine.forget("n", 1)
        await mine.release("n", 1)
        assert await outcome(other, append(1, b"1", epoch=2)) == "kept"
        assert await mine.take_over("n") is None  # its owner lives
        assert (await mine.read(Read("n", 0, 0))).entries == [b"0", b"1"]


async def test_a_key_is_its_streams_until_that_fails_or_goes(server: RedisServer) -> None:
    async with logs(server) as mine:
        assert (await mine.begin(begin(key="k"))).began
        again = await mine.begin(begin("other", key="k", fingerprint=b"x"))
        assert (again.began, again.name, again.request_id, again.fingerprint) == (False, "n", "id of n", b"f")
        named = await mine.begin(begin())
        assert (named.began, named.name) == (False, "")
        await mine.fail("n", 1)
        assert (await mine.begin(begin(key="k"))).began
        await mine.forget("n", 1)
        assert (await mine.begin(begin("other", key="k"))).began


async def test_a_stream_that_is_over_is_owned_by_nobody_and_taken_by_nobody(server: RedisServer) -> None:
    async with logs(server) as mine:
        await mine.begin(begin())
        await outcome(mine, append(0, b"0", state="done"))
        found = await mine.read(Read("n", 0, 0))
        assert (found.state, found.owned) == ("done", False)
        assert await mine.take_over("n") is None


async def test_readers_are_counted_and_a_cancellation_is_heard(server: RedisServer) -> None:
    async with logs(server) as mine:
        assert (await mine.attend("n"), await mine.cancel("n")) == (0, False)
        await mine.begin(begin())
        assert [await mine.attend("n"), await mine.attend("n")] == [1, 2]
        assert await mine.cancel("n")
        ((appended,), _) = await mine.sync([append(0)], [])
        assert (appended.reader, appended.cancelled, appended.read_elsewhere) == (2, True, False)
        await mine.read(Read("n", 0, 60_000))
        assert (await mine.sync([append(0)], []))[0][0].read_elsewhere


async def test_a_server_that_forgot_the_script_is_given_it_again(server: RedisServer) -> None:
    async with logs(server) as mine:
        await mine.begin(begin())
        server.command("SCRIPT", "FLUSH")
        assert await outcome(mine, append(0, b"0")) == "kept"


async def test_a_full_server_refuses_and_is_no_failing_one() -> None:
    with redis_server(maxmemory="3mb", maxmemory_policy="noeviction") as server:
        async with logs(server) as mine:
            await mine.begin(begin())
            with pytest.raises(Refused):
                for position in range(100):
                    await outcome(mine, append(position, b"x" * (1 << 18)))


async def test_everything_lapses(server: RedisServer) -> None:
    async with logs(server) as mine:
        await mine.begin(begin(key="k"))
        await outcome(mine, append(0, b"0"))
        await mine.read(Read("n", 0, 1000))
        keys = [line for line in server.command("KEYS", "*").split(b"\r\n") if line.startswith(b"weir-retained:")]
        assert len(keys) == 5
        assert all(int(server.command("PTTL", key)[1:]) > 0 for key in keys)


def test_names_tell_nothing_and_do_not_run_into_one_another() -> None:
    names = {
        hashed("stream", "a", "bc"),
        hashed("stream", "ab", "c"),
        hashed("key", "a", "bc"),
        hashed("stream", "abc"),
    }
    assert len(names) == 4
    assert all(len(name) == 32 and "abc" not in name for name in names)
