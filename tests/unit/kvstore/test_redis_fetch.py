"""Values received over connections that are the client's otherwise: on both event loops, and when they break."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from redis.exceptions import RedisError

from servers import redis_server
from unit.kvstore import redis_fetching
from unit.kvstore.redis_fetching import VALUES, client_of, get


@pytest.mark.parametrize("loop", redis_fetching.RUN)
def test_whatever_the_moment_at_which_a_server_is_killed(loop: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "error", redis_fetching.__file__, loop, "5", "4"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "5 servers killed" in done.stdout
    assert not done.stderr


async def test_a_connection_that_was_left_in_the_middle_is_not_used_again() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            await client.mset(VALUES)
            for _ in range(5):
                left = asyncio.create_task(get(client, *["large"] * 8))
                await asyncio.sleep(0.001)
                left.cancel()
                await asyncio.wait([left])
                assert await client.get("page") == VALUES["page"]
                assert await get(client, "small") == [VALUES["small"]]


async def test_a_server_that_was_killed_is_an_error_and_then_works_again() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            await client.mset(VALUES)
            server.kill()
            with pytest.raises((RedisError, OSError)):
                await get(client, "page")
            server.start()
            assert await get(client, "page") == [None]
