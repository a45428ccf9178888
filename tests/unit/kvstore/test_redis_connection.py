"""A connection that is redis-py's, whose bytes go into replies while there are any: over TCP, TLS and a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.exceptions import ConnectionError as ConnectionLost

from servers import redis_server
from unit.kvstore.redis_fetching import VALUES, client_of, fetch_over_every_transport, get
from weir_kvstore.tiers.redis.connection import Receiver
from weir_kvstore.tiers.redis.replies import Replies


async def test_over_every_transport() -> None:
    with redis_server() as server:
        await fetch_over_every_transport(server)


async def test_with_a_password_and_a_database() -> None:
    with redis_server(requirepass="secret") as server:
        async with client_of(f"unix://:secret@{server.socket_path}?db=3") as client:
            await client.mset(VALUES)
            assert await get(client, "page") == [VALUES["page"]]
        async with client_of(f"unix://:secret@{server.socket_path}") as client:
            assert await get(client, "page") == [None], "another database"


@pytest.mark.parametrize("leave", [Receiver.eof_received, lambda one: Receiver.connection_lost(one, OSError("reset"))])
async def test_a_server_that_leaves(leave: Callable[[Receiver], object]) -> None:
    receiver = Receiver()
    receiver.replies = Replies(1, 100)
    leave(receiver)
    receiver.connection_lost(None)
    with pytest.raises(ConnectionLost):
        await receiver.replies.whole
    assert receiver.reader.at_eof() or receiver.reader.exception(), "and redis-py's reader knows it"


async def test_a_connection_that_is_lost_already_is_not_waited_for() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            replies = Replies(1, 100)
            connection._writer.transport.abort()
            for _ in range(2):  # while it is being closed, and afterwards
                with pytest.raises(ConnectionLost), connection.receiving(replies):
                    pytest.fail("there is nobody to ask")
                await asyncio.sleep(0.01)
            await client.connection_pool.release(connection)
