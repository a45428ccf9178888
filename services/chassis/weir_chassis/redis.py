"""A Redis client that leaves waiting and trying again to us."""

from __future__ import annotations

from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from weir_chassis.store_link import Refused

# `maxmemory` is reached and nothing may be evicted. A script's error only quotes it, so it is known by its words.
_OUT_OF_MEMORY: Final = "not allowed when used memory"


def open_client(url: str, *, connections: int) -> Redis:
    """Connects when first used; one more than so many at once waits. Raises ValueError for a URL that is none."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        # Every call has one time limit, around all of this.
        timeout=None,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis(connection_pool=pool)


async def close_client(client: Redis) -> None:
    await client.aclose()
    await client.connection_pool.disconnect()


def refused_or(error: ResponseError) -> Exception:
    """The error as the tier's link wants it: a full server is no failing one."""
    return Refused(str(error)) if _OUT_OF_MEMORY in str(error) else error
