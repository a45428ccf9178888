"""What a server answers to `GET`s, in any pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ResponseError

from unit.kvstore.redis_fetching import plain
from weir_kvstore.tiers.redis.replies import Replies, Reply

LIMIT = 100_000


def spoken(reply: bytes | Exception | None) -> bytes:
    """As a server says it."""
    if isinstance(reply, Exception):
        return b"-%s\r\n" % str(reply).encode()
    return b"$-1\r\n" if reply is None else b"$%d\r\n%s\r\n" % (len(reply), reply)


def hear(replies: Replies, said: bytes, pieces: Sequence[int] = (1 << 20,)) -> None:
    """As a transport does: into the buffer that is given, no more than there is room, by turns in pieces so long."""
    at = turn = 0
    while at < len(said):
        buffer = replies.room
        got = min(len(buffer), pieces[turn % len(pieces)], len(said) - at)
        assert got > 0, "an empty buffer ends a transport"
        buffer[:got] = said[at : at + got]
        replies.arrived(got)
        at, turn = at + got, turn + 1


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
    hear(replies, spoken(b"one") + spoken(b"two"))
    with pytest.raises(InvalidResponse):
        await replies.whole
    replies = Replies(1, LIMIT)
    hear(replies, spoken(b"one"))
    replies.require_end()
    hear(replies, spoken(b"two"))
    assert plain(await replies.whole) == [b"one"]
    with pytest.raises(InvalidResponse, match="more answers"):
        replies.require_end()


@pytest.mark.parametrize("said", [b"", b"$3", b"$5\r\nab", spoken(b"one")])
async def test_a_server_that_leaves(said: bytes) -> None:
    replies = Replies(2, LIMIT)
    hear(replies, said)
    replies.fail(ConnectionLost("reset"))
    replies.fail(ConnectionLost("closed"))
    with pytest.raises(ConnectionLost, match="reset"):
        await replies.whole
