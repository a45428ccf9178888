"""What fetching must come to, on whatever event loop, also when the server is killed.

As a program, `python redis_fetching.py LOOP KILLS SEED`, in a process of its own: should an event loop fail in its C
code, then it is this process that ends, and it says where (faulthandler).
"""

from __future__ import annotations

import asyncio
import faulthandler
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers import RedisServer, redis_server
from weir_chassis.redis import close_client, open_client
from weir_kvstore.tiers.redis.connection import connect_directly
from weir_kvstore.tiers.redis.fetch import fetch
from weir_kvstore.tiers.redis.replies import Reply

LIMIT = 1 << 24
VALUES = {"small": b"\r\n$-1\r\n", "none": b"", "page": bytes(range(256)) * 16, "large": b"0123456789abcdef" * 200_000}
_TLS = Path(__file__).parents[1] / "chassis" / "tls"
RUN = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    """With one connection, so that whatever is left on it is met again."""
    client = open_client(url, connections=1)
    connect_directly(client)
    try:
        yield client
    finally:
        await close_client(client)


async def get(client: Redis, *keys: str) -> list[bytes | str | None]:
    return plain(await fetch(client.connection_pool, keys, max_value_bytes=LIMIT))


def plain(replies: Sequence[Reply]) -> list[bytes | str | None]:
    """An error as its words."""
    return [str(one) if isinstance(one, Exception) else one if one is None else bytes(one) for one in replies]


async def fetch_and_use(url: str) -> None:
    """The connection is the client's own again after each batch."""
    async with client_of(url) as client:
        await client.mset(VALUES)
        for _ in range(3):
            assert await get(client, *VALUES, "missing") == [*VALUES.values(), None]
            assert await client.get("page") == VALUES["page"]
            assert await client.get("large") == VALUES["large"]


@asynccontextmanager
async def passed_on(server: RedisServer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a listener that passes on what it hears to the server, and back."""
    under_way: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while said := await source.read(1 << 16):
            sink.write(said)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        plain_reader, plain_writer = await asyncio.open_unix_connection(str(server.socket_path))
        await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer), return_exceptions=True)
        for each in (plain_writer, writer):
            each.close()
            await asyncio.wait([asyncio.ensure_future(each.wait_closed())])

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        yield listener.sockets[0].getsockname()[1]
        if under_way:
            await asyncio.wait(under_way)


async def fetch_over_every_transport(server: RedisServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_TLS / "certificate.pem", _TLS / "key.pem")
    await fetch_and_use(server.url)
    async with passed_on(server) as port:
        await fetch_and_use(f"redis://127.0.0.1:{port}")
    async with passed_on(server, context) as port:
        await fetch_and_use(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none")


async def fetch_while_it_is_killed(server: RedisServer, kills: int, dice: Random) -> int:
    """At any moment of a batch, and between two; what comes is whole or an error. How many batches were cut off."""
    cut_off = 0
    async with client_of(server.url) as client:
        for _ in range(kills):
            await client.mset(VALUES)
            killing = asyncio.create_task(_kill(server, dice.choice((0.0, dice.random() * 0.02))))
            try:
                while not killing.done():
                    keys = dice.sample(sorted(VALUES), dice.randrange(1, 4))
                    assert await get(client, *keys) == [VALUES[key] for key in keys]
            except (RedisError, OSError):
                cut_off += 1
            await killing
            with suppress(RedisError, OSError):
                await get(client, "page")
                raise AssertionError("nobody is there")
            server.start()
            assert await get(client, "page") == [None]
    return cut_off


async def _kill(server: RedisServer, seconds: float) -> None:
    await asyncio.sleep(seconds)
    server.kill()


def main(loop: str, kills: str, seed: str) -> None:
    faulthandler.enable()
    with redis_server() as server:
        RUN[loop](fetch_over_every_transport(server))
        cut_off = RUN[loop](fetch_while_it_is_killed(server, int(kills), Random(seed)))
    print(f"{loop}: {kills} servers killed, {cut_off} batches cut off, none wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
