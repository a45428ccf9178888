from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.chassis.kv_events.making import name, stored
from weir.inference.v1.kv_event_pb2 import BlocksStored, KvEvent, KvEventBatch, KvReset
from weir_chassis.event_log import Batch
from weir_chassis.kv_events import blocks, wire
from weir_chassis.kv_events.wire import MIN_MESSAGE_BYTES, Source

SOURCE = Source("executor", "10.0.0.7:7701")


def long(count: int) -> list[KvEvent]:
    return list(blocks.stored([name(i) for i in range(count)], b"", tier="ram", namespace=b"n" * 16))


def test_a_source_is_one_token_of_its_subjects() -> None:
    assert wire.events_subject(SOURCE) == "weir.kv.events.executor.10=2E0=2E0=2E7=3A7701"
    assert wire.snapshot_subject(SOURCE) == "weir.kv.snapshot.executor.10=2E0=2E0=2E7=3A7701"
    assert wire.events_of_all("executor") == "weir.kv.events.executor.*"


@given(one=st.text(min_size=1, max_size=20), other=st.text(min_size=1, max_size=20))
def test_different_names_are_different_subjects(one: str, other: str) -> None:
    subjects = {wire.events_subject(Source("executor", name)) for name in (one, other)}
    assert len(subjects) == len({one, other})
    assert all(subject.isascii() and subject.count(".") == 4 and " " not in subject for subject in subjects)


@given(sizes=st.lists(st.integers(1, 3 * blocks.MAX_EVENT_BLOCKS), max_size=8))
def test_batches_fit_a_message_and_go_on_from_one_another(sizes: list[int]) -> None:
    events = [event for size in sizes for event in long(size)]
    sent = list(wire.batches(SOURCE, 7, 100 + len(events), events, MIN_MESSAGE_BYTES))
    assert all(batch.ByteSize() <= MIN_MESSAGE_BYTES for batch in sent)
    assert [event for batch in sent for event in batch.events] == events
    last = 100
    for batch in sent:
        assert batch.sequence - len(batch.events) == last
        last = batch.sequence
    assert last == 100 + len(events)


def test_few_events_are_one_batch() -> None:
    (batch,) = wire.batches(SOURCE, 7, 12, [stored(1), stored(2)], MIN_MESSAGE_BYTES)
    assert (wire.source_of(batch), batch.epoch, batch.sequence) == (SOURCE, 7, 12)


def test_a_snapshot_comes_in_pieces_of_which_the_first_resets_and_the_last_says_so() -> None:
    events = long(10 * blocks.MAX_EVENT_BLOCKS)
    pieces = list(wire.answer(SOURCE, 7, Batch(99, events, reset=True), MIN_MESSAGE_BYTES))
    assert len(pieces) > 5
    assert [wire.is_reset(piece) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last_piece for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [piece.piece for piece in pieces] == list(range(len(pieces)))
    assert {piece.sequence for piece in pieces} == {99}
    assert [event for piece in pieces for event in piece.events][1:] == events


def test_an_answer_without_events_is_one_piece() -> None:
    (piece,) = wire.answer(SOURCE, 7, Batch(99, []), MIN_MESSAGE_BYTES)
    assert (wire.source_of(piece), piece.sequence, piece.last_piece, len(piece.events)) == (SOURCE, 99, True, 0)
    (piece,) = wire.answer(SOURCE, 7, Batch(0, [], reset=True), MIN_MESSAGE_BYTES)
    assert wire.is_reset(piece)


def test_the_longest_names_and_event_fit_the_smallest_message() -> None:
    (event,) = blocks.stored([name(i) for i in range(blocks.MAX_EVENT_BLOCKS)], name(1), tier="ram", namespace=name(2))
    source = Source("postprocess", "ä" * (wire.MAX_NAME_BYTES // 2))
    (batch,) = wire.batches(source, 2**64 - 1, 2**63, [event], MIN_MESSAGE_BYTES)
    assert batch.ByteSize() <= MIN_MESSAGE_BYTES
    assert wire.parse(batch.SerializeToString()) == batch


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff",
        b"",
        KvEventBatch(service="executor").SerializeToString(),
        KvEventBatch(service="executor", source="x" * 256).SerializeToString(),
        KvEventBatch(service="a", source="b", events=[KvEvent()]).SerializeToString(),
        KvEventBatch(
            service="a", source="b", events=[KvEvent(stored=BlocksStored(block_hashes=b"short"))]
        ).SerializeToString(),
    ],
    ids=["bytes", "empty", "no_name", "long_name", "no_event", "no_hashes"],
)
def test_what_is_no_batch_is_none(payload: bytes) -> None:
    assert wire.parse(payload) is None


def test_a_reset_is_told_by_the_first_event() -> None:
    reset = KvEvent(reset=KvReset())
    assert wire.is_reset(KvEventBatch(events=[reset, stored(1)]))
    assert not wire.is_reset(KvEventBatch(events=[stored(1)]))
    assert not wire.is_reset(KvEventBatch())
