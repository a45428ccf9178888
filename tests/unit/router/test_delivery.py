"""Merging changes the number of messages and nothing else; a client that is too slow costs a bounded memory."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, TokenLogprob
from weir_chassis.errors import Internal, SlowConsumer
from weir_chassis.testing import settle
from weir_router.delivery import Event, Outbox
from weir_router.write_pace import BEGINNING_SECONDS, WritePace


def delta(output_index: int, first: int, *token_ids: int) -> Delta:
    return Delta(
        output_index=output_index,
        first_token_index=first,
        token_ids=token_ids,
        text="".join(chr(97 + token_id) for token_id in token_ids),
        logprobs=[TokenLogprob(token_id=token_id, logprob=-1.0) for token_id in token_ids],
    )


def put(outbox: Outbox, *deltas: Delta) -> None:
    for each in deltas:
        outbox.add_delta(each, len(each.token_ids))


def new_outbox(max_pending_tokens: int) -> Outbox:
    """On a loop that is never busy."""
    return Outbox(max_pending_tokens, WritePace(busy=lambda: 0.0))


def busy_pace() -> WritePace:
    """Of a loop that is busy, whatever this one is: no time passes in which that could be found out."""
    pace = WritePace(monotonic=lambda: 0.0)
    pace.interval = 3600.0
    return pace


async def test_an_idle_stream_gets_each_delta_as_it_comes() -> None:
    outbox = new_outbox(100)
    taken = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    put(outbox, delta(0, 0, 1))
    assert await taken == [delta(0, 0, 1)]
    put(outbox, delta(0, 1, 2))
    assert await outbox.take() == [delta(0, 1, 2)]


async def test_what_comes_during_a_write_is_merged_per_output_in_order() -> None:
    outbox = new_outbox(100)
    put(outbox, delta(0, 0, 1), delta(1, 0, 5), delta(0, 1, 2, 3), delta(1, 1, 6))
    outbox.add(OutputFinished(output_index=0, finish_reason=FinishReason.FINISH_REASON_STOP))
    assert await outbox.take() == [
        delta(0, 0, 1, 2, 3),
        delta(1, 0, 5, 6),
        OutputFinished(output_index=0, finish_reason=FinishReason.FINISH_REASON_STOP),
    ]


async def test_merging_does_not_change_the_messages_that_came() -> None:
    outbox, first = new_outbox(100), delta(0, 0, 1)
    put(outbox, first, delta(0, 1, 2))
    await outbox.take()
    assert first == delta(0, 0, 1)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 25), max_size=3)), max_size=20),
    st.sets(st.integers(0, 20)),
)
def test_nothing_is_lost_doubled_or_reordered(parts: list[tuple[int, list[int]]], reads: set[int]) -> None:
    async def run() -> list[Event]:
        outbox, out, counts = new_outbox(1000), list[Event](), [0, 0, 0]
        for index, (output_index, token_ids) in enumerate(parts):
            put(outbox, delta(output_index, counts[output_index], *token_ids))
            counts[output_index] += len(token_ids)
            if index in reads:
                out += await outbox.take()
        outbox.close()
        while events := await outbox.take():
            out += events
        return out

    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for event in asyncio.run(run()):
        assert isinstance(event, Delta)
        assert event == delta(event.output_index, len(seen[event.output_index]), *event.token_ids)
        seen[event.output_index] += event.token_ids
    for output_index, tokens in seen.items():
        assert tokens == [token for index, ids in parts if index == output_index for token in ids]


async def test_the_end_comes_after_what_is_pending() -> None:
    outbox = new_outbox(100)
    outbox.add(Accepted(request_id="r"))
    outbox.close()
    outbox.close(Internal("too late to matter"))
    assert await outbox.take() == [Accepted(request_id="r")]
    assert await outbox.take() == []


async def test_an_error_comes_after_what_is_pending() -> None:
    outbox = new_outbox(100)
    put(outbox, delta(0, 0, 1))
    outbox.close(Internal("broken"))
    assert await outbox.take() == [delta(0, 0, 1)]
    with pytest.raises(Internal):
        await outbox.take()


async def test_an_error_wakes_who_waits() -> None:
    outbox = new_outbox(100)
    taken = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.close(Internal("broken"))
    with pytest.raises(Internal):
        await taken


async def test_a_client_that_is_too_slow_loses_its_stream_and_the_memory() -> None:
    outbox = new_outbox(3)
    put(outbox, delta(0, 0, 1, 2), delta(1, 0, 3))
    assert not outbox.closed
    put(outbox, delta(0, 2, 4))
    assert outbox.closed
    assert isinstance(outbox.error, SlowConsumer)
    with pytest.raises(SlowConsumer, match="3 tokens"):
        await outbox.take()


async def test_reading_makes_room_again() -> None:
    outbox = new_outbox(2)
    for index in range(10):
        put(outbox, delta(0, 2 * index, 1, 2))
        assert await outbox.take() == [delta(0, 2 * index, 1, 2)]


async def test_on_a_busy_loop_deltas_wait_for_the_next_round_and_nothing_else_does() -> None:
    pace = busy_pace()
    outbox = Outbox(100, pace)
    put(outbox, delta(0, 0, 1))
    assert await outbox.take() == [delta(0, 0, 1)], "it was not written a moment ago"
    taken = asyncio.create_task(outbox.take())
    put(outbox, delta(0, 1, 2), delta(0, 2, 3))
    await settle()
    assert not taken.done()
    outbox.add(OutputFinished(output_index=0))
    assert await taken == [delta(0, 1, 2, 3), OutputFinished(output_index=0)]


async def test_a_beginning_goes_out_at_once_and_on_a_busy_loop_with_the_first_delta() -> None:
    outbox = new_outbox(100)
    outbox.begin(Accepted(request_id="r"))
    assert await outbox.take() == [Accepted(request_id="r")]

    pace = busy_pace()
    outbox = Outbox(100, pace)
    taken = asyncio.create_task(outbox.take())
    await settle()
    outbox.begin(Accepted(request_id="r"))
    await settle()
    assert not taken.done()
    put(outbox, delta(0, 0, 1))
    assert await taken == [Accepted(request_id="r"), delta(0, 0, 1)]


async def test_a_beginning_does_not_wait_because_the_loop_was_busy_long_ago() -> None:
    now = computed = 0.0
    pace = WritePace(monotonic=lambda: now, busy=lambda: computed)
    now = computed = 1.0
    pace.note()
    assert pace.interval
    outbox = Outbox(100, pace)
    taken = asyncio.create_task(outbox.take())
    await settle()
    now = 10.0
    outbox.begin(Accepted(request_id="r"))
    await settle()
    assert taken.done()
    assert await taken == [Accepted(request_id="r")]


async def test_on_a_busy_loop_a_beginning_without_a_delta_goes_out_alone_in_the_end() -> None:
    pace = busy_pace()
    outbox = Outbox(100, pace)
    outbox.begin(Accepted(request_id="r"))
    assert await outbox.take() == [Accepted(request_id="r")]


async def test_a_stream_whose_beginning_has_waited_takes_its_turns_as_all_others_do() -> None:
    pace = busy_pace()
    outbox = Outbox(100, pace)
    taken = asyncio.create_task(outbox.take())
    await settle()
    outbox.begin(Accepted(request_id="r"))
    put(outbox, delta(0, 0, 1))
    assert await taken == [Accepted(request_id="r"), delta(0, 0, 1)]
    pace.interval = 0.05
    put(outbox, delta(0, 1, 2))
    assert await outbox.take() == [delta(0, 1, 2)], "the next round is not the one of the beginnings"
    pace.interval = 3600.0
    put(outbox, delta(0, 2, 3))
    taken = asyncio.create_task(outbox.take())
    await asyncio.sleep(2 * BEGINNING_SECONDS)
    assert not taken.done(), "its beginning went out long ago"
    taken.cancel()


async def test_deltas_do_not_wait_until_they_are_too_many() -> None:
    pace = busy_pace()
    outbox = Outbox(10, pace)
    put(outbox, delta(0, 0, 1))
    await outbox.take()
    taken = asyncio.create_task(outbox.take())
    put(outbox, delta(0, 1, 1, 2, 3, 4, 5))
    await settle()
    assert not taken.done()
    put(outbox, delta(0, 6, 6))
    assert await taken == [delta(0, 1, 1, 2, 3, 4, 5, 6)]


async def test_a_round_writes_what_has_come_until_then_and_the_end_waits_for_none() -> None:
    pace = busy_pace()
    outbox, pace.interval = Outbox(100, pace), 0.05
    put(outbox, delta(0, 0, 1))
    await outbox.take()
    put(outbox, delta(0, 1, 2))
    taken = asyncio.create_task(outbox.take())
    await settle()
    put(outbox, delta(0, 2, 3))
    assert await taken == [delta(0, 1, 2, 3)]
    pace.interval = 3600.0
    put(outbox, delta(0, 3, 4))
    outbox.close()
    assert await outbox.take() == [delta(0, 3, 4)]
    assert await outbox.take() == []
