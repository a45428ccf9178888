"""Replies received straight into values: in any pieces, by both event loops, and over TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from servers import RedisServer, redis_server
from weir_chassis.redis import close_client, open_client
from weir_kvstore.tiers.redis.fetch import Replies, Reply, fetch

TLS = Path(__file__).parents[1] / "chassis" / "tls"
LIMIT = 100_000
VALUES = {"small": b"\r\n$-1\r\n", "none": b"", "page": bytes(range(256)) * 16, "large": b"0123456789abcdef" * 200_000}


def spoken(reply: bytes | Exception | None) -> bytes:
    """As a server says it."""
    if isinstance(reply, Exception):
        return b"-%s\r\n" % str(reply).encode()
    return b"$-1\r\n" if reply is None else b"$%d\r\n%s\r\n" % (len(reply), reply)


def hear(replies: Replies, said: bytes, pieces: Sequence[int] = (1 << 20,)) -> None:
    """As a transport does: into the buffer that is given, no more than there is room, by turns in pieces so long."""
    at = turn = 0
    while at < len(said):
        buffer = replies.get_buffer(-1)
        got = min(len(buffer), pieces[turn % len(pieces)], len(said) - at)
        assert got > 0, "an empty buffer ends a transport"
        buffer[:got] = said[at : at + got]
        replies.buffer_updated(got)
        at, turn = at + got, turn + 1


def plain(replies: Sequence[Reply]) -> list[bytes | str | None]:
    """An error as its words."""
    return [str(one) if isinstance(one, Exception) else one if one is None else bytes(one) for one in replies]


async def heard(count: int, said: bytes, pieces: Sequence[int] = (1 << 20,)) -> list[Reply]:
    replies = Replies(count, LIMIT)
    hear(replies, said, pieces)
    assert replies.whole.done()
    return await replies.whole


_REPLIES = st.lists(
    st.none()
    | st.binary(max_size=300)
    | st.integers(0, 3).map(lambda pages: bytes(pages * 16_384))
    | st.just(ResponseError("WRONGTYPE of a list")),
    min_size=1,
    max_size=6,
)


@given(_REPLIES, st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
def test_in_any_pieces_they_are_what_was_said(said: list[bytes | Exception | None], pieces: list[int]) -> None:
    got = asyncio.run(heard(len(said), b"".join(map(spoken, said)), pieces))
    assert plain(got) == [str(one) if isinstance(one, Exception) else one for one in said]


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
async def test_of_a_value_that_is_longer_than_any_of_ours_nothing_is_held(piece: int) -> None:
    said = spoken(b"x" * (LIMIT + 1)) + spoken(b"after") + spoken(b"y" * (LIMIT + 1))
    replies = Replies(3, LIMIT)
    hear(replies, said[:-1], [piece])
    assert not replies.whole.done(), "its end is still to come, and is nobody else's beginning"
    hear(replies, said[-1:])
    assert plain(await replies.whole) == [b"", b"after", b""]


@pytest.mark.parametrize(
    "said",
    [
        b":1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"+OK\r\n",
        b"\r\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$1x\r\n",
        b"$3\r\nlonger",
        b"$" + b"1" * 5000,
    ],
    ids=repr,
)
async def test_what_is_no_answer_to_a_get(said: bytes) -> None:
    with pytest.raises(InvalidResponse):
        await heard(1, said)


async def test_more_than_was_asked_for() -> None:
    replies = Replies(1, LIMIT)
    with pytest.raises(InvalidResponse):
        hear(replies, spoken(b"one") + spoken(b"two"))
        await replies.whole


@pytest.mark.parametrize("said", [b"", b"$3", b"$5\r\nab", spoken(b"one")])
async def test_a_server_that_leaves(said: bytes) -> None:
    for leave in (Replies.eof_received, lambda replies: Replies.connection_lost(replies, OSError("reset"))):
        replies = Replies(2, LIMIT)
        hear(replies, said)
        leave(replies)
        replies.connection_lost(None)
        with pytest.raises(ConnectionLost):
            await replies.whole


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    """With one connection, so that whatever is left on it is met again."""
    client = open_client(url, connections=1)
    try:
        yield client
    finally:
        await close_client(client)


async def _fetch_and_use(url: str) -> None:
    async with client_of(url) as client:
        await client.mset(VALUES)
        for _ in range(3):
            got = await fetch(client.connection_pool, [*VALUES, "missing"], max_value_bytes=1 << 24)
            assert plain(got) == [*VALUES.values(), None]
            assert await client.get("page") == VALUES["page"], "the connection is the client's again"


def test_with_both_event_loops() -> None:
    with redis_server() as server:
        asyncio.run(_fetch_and_use(server.url))
        uvloop.run(_fetch_and_use(server.url))


@asynccontextmanager
async def behind_tls(server: RedisServer) -> AsyncIterator[int]:
    """The port of a listener that speaks TLS and passes on what it hears to the server, and back."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while said := await source.read(1 << 16):
            sink.write(said)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain_reader, plain_writer = await asyncio.open_unix_connection(str(server.socket_path))
        await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        yield listener.sockets[0].getsockname()[1]


async def _through_tls(server: RedisServer) -> None:
    async with behind_tls(server) as port:
        await _fetch_and_use(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none")


def test_over_tls() -> None:
    with redis_server() as server:
        asyncio.run(_through_tls(server))
        uvloop.run(_through_tls(server))


async def test_a_connection_that_was_left_in_the_middle_is_not_used_again() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            await client.mset(VALUES)
            for _ in range(5):
                left = asyncio.create_task(fetch(client.connection_pool, ["large"] * 8, max_value_bytes=1 << 24))
                await asyncio.sleep(0.001)
                left.cancel()
                await asyncio.wait([left])
                assert await client.get("page") == VALUES["page"]
                got = await fetch(client.connection_pool, ["small"], max_value_bytes=1 << 24)
                assert plain(got) == [VALUES["small"]]


async def test_a_server_that_was_killed_is_an_error_and_then_works_again() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            await client.mset(VALUES)
            server.kill()
            with pytest.raises((RedisError, OSError)):
                await fetch(client.connection_pool, ["page"], max_value_bytes=1 << 24)
            server.start()
            assert await fetch(client.connection_pool, ["page"], max_value_bytes=1 << 24) == [None]
