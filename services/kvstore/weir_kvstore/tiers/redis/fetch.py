"""`GET`s sent together, over a connection that receives each value into memory of its own."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio.connection import ConnectionPool

from weir_kvstore.tiers.redis.connection import DirectConnection
from weir_kvstore.tiers.redis.replies import Replies, Reply


async def fetch(pool: ConnectionPool, keys: Sequence[str], *, max_value_bytes: int) -> list[Reply]:
    """One reply for each key, in order; of a value that is longer than any of ours, none of its bytes.

    The pool's connections are direct (connection.py). Raises RedisError, OSError. A connection on which replies are
    still to come is not used again.
    """
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        assert isinstance(connection, DirectConnection), connection
        replies = Replies(len(keys), max_value_bytes)
        with connection.receiving(replies) as send:
            send(b"".join(connection.pack_commands([("GET", key) for key in keys])))
            got = await replies.whole
        replies.require_end()
        return got
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
