"""Whatever is lost, repeated or reordered: what a follower knows is what the source holds, once it has heard of it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from unit.chassis.kv_events.making import everything, some_event, stored
from weir.inference.v1.kv_event_pb2 import KvEvent, KvEventBatch
from weir_chassis.event_log import Batch
from weir_chassis.kv_events import wire
from weir_chassis.kv_events.blocks import HeldBlocks, new_log
from weir_chassis.kv_events.progress import Progress, Step
from weir_chassis.kv_events.wire import MIN_MESSAGE_BYTES, Source

SOURCE = Source("kvstore", "one")


def batch(epoch: int, sequence: int, *events: KvEvent) -> KvEventBatch:
    return KvEventBatch(service="kvstore", source="one", epoch=epoch, sequence=sequence, events=events)


def snapshot(epoch: int, sequence: int, *events: KvEvent) -> list[KvEventBatch]:
    return list(wire.answer(SOURCE, epoch, Batch(sequence, events, reset=True), MIN_MESSAGE_BYTES))


def begun(epoch: int = 1, sequence: int = 10) -> Progress:
    progress = Progress()
    progress.take_answer(snapshot(epoch, sequence))
    return progress


def events_of(steps: list[Step]) -> list[KvEvent]:
    return [event for step in steps for event in step.events]


def test_nothing_is_known_before_an_answer() -> None:
    progress = Progress()
    assert progress.must_ask
    assert progress.hear(batch(1, 11, stored(1))) == []
    steps = progress.take_answer(snapshot(1, 10, stored(7)))
    assert [step.reset for step in steps] == [True, False]
    assert events_of(steps) == [stored(7), stored(1)]
    assert (progress.sequence, progress.must_ask) == (11, False)


def test_what_goes_on_is_taken_and_what_comes_twice_is_not() -> None:
    progress = begun()
    assert events_of(progress.hear(batch(1, 12, stored(1), stored(2)))) == [stored(1), stored(2)]
    assert progress.hear(batch(1, 12, stored(1), stored(2))) == []
    assert events_of(progress.hear(batch(1, 13, stored(2), stored(3)))) == [stored(3)], "only the part that is new"
    assert not progress.must_ask


def test_a_gap_is_asked_for_and_what_came_too_early_waits() -> None:
    progress = begun()
    assert progress.hear(batch(1, 13, stored(3))) == []
    assert progress.must_ask
    steps = progress.take_answer(list(wire.answer(SOURCE, 1, Batch(12, [stored(1), stored(2)]), MIN_MESSAGE_BYTES)))
    assert events_of(steps) == [stored(1), stored(2), stored(3)]
    assert not any(step.reset for step in steps)
    assert not progress.must_ask


def test_a_gap_that_closes_by_itself_is_no_gap() -> None:
    progress = begun()
    progress.hear(batch(1, 12, stored(2)))
    assert events_of(progress.hear(batch(1, 11, stored(1)))) == [stored(1), stored(2)]
    assert not progress.must_ask


def test_a_heartbeat_shows_what_was_lost_at_the_end() -> None:
    progress = begun()
    progress.hear(batch(1, 10))
    assert not progress.must_ask
    progress.hear(batch(1, 11))
    assert progress.must_ask


def test_another_epoch_changes_nothing_until_the_source_has_answered() -> None:
    progress = begun()
    assert progress.hear(batch(2, 1, stored(1))) == []
    assert progress.must_ask
    assert progress.epoch == 1
    steps = progress.take_answer(snapshot(2, 0))
    assert (steps[0].reset, events_of(steps)) == (True, [stored(1)])
    assert (progress.epoch, progress.sequence, progress.must_ask) == (2, 1, False)


def test_a_straggler_from_before_a_restart_costs_a_question_and_no_more() -> None:
    progress = begun(epoch=2)
    assert progress.hear(batch(1, 500, stored(9))) == []
    assert progress.must_ask
    assert progress.take_answer([batch(2, 10)]) == []
    assert not progress.must_ask


def test_an_answer_that_was_overtaken_resets_nothing() -> None:
    progress = begun()
    progress.hear(batch(1, 11, stored(1)))
    assert progress.take_answer(snapshot(1, 10)) == []
    assert progress.sequence == 11


def test_what_waits_is_bounded_and_what_comes_next_is_taken_all_the_same() -> None:
    progress = begun()
    for sequence in range(1000, 3000, 2):
        progress.hear(batch(1, sequence, stored(sequence)))
        progress.hear(batch(9, sequence, stored(sequence)))
    assert len(progress._early) <= 64
    assert events_of(progress.hear(batch(1, 11, stored(1)))) == [stored(1)]


@given(seed=st.integers(0, 2**32))
def test_after_any_history_and_one_heartbeat_it_knows_what_the_source_holds(seed: int) -> None:
    random, progress, known = Random(seed), Progress(), HeldBlocks()
    world = _World(random)
    for _ in range(60):
        world.happen()
        for heard in world.arrivals():
            _take(known, progress.hear(heard))
        if progress.must_ask and random.random() < 0.3:
            _take(known, progress.take_answer(world.answer(progress)))
    _take(known, progress.hear(world.heartbeat()))
    for _ in range(3):
        if progress.must_ask:
            _take(known, progress.take_answer(world.answer(progress)))
    assert not progress.must_ask
    assert everything(known) == everything(world.held)


class _World:
    """A source that restarts now and then, and a bus that loses, repeats and reorders."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._under_way: list[KvEventBatch] = []
        self._epoch = 0
        self._restart()

    def _restart(self) -> None:
        self._epoch += 1
        self.held = HeldBlocks()
        self._recent: list[KvEvent] = []

    def happen(self) -> None:
        if self._random.random() < 0.03:
            self._restart()
        events = [some_event(self._random) for _ in range(self._random.randrange(4))]
        for event in events:
            self.held.apply(event)
        self._recent += events
        self._under_way.append(batch(self._epoch, len(self._recent), *events))

    def arrivals(self) -> Iterator[KvEventBatch]:
        while self._under_way and self._random.random() < 0.7:
            index = self._random.choice([0, 0, self._random.randrange(len(self._under_way))])
            yield self._under_way[index]
            if self._random.random() < 0.8:
                del self._under_way[index]
        if self._under_way and self._random.random() < 0.2:
            del self._under_way[self._random.randrange(len(self._under_way))]

    def heartbeat(self) -> KvEventBatch:
        return batch(self._epoch, len(self._recent))

    def answer(self, progress: Progress) -> list[KvEventBatch]:
        """As a log that remembers eight events gives it."""
        sequence, wanted = len(self._recent), progress.sequence + 1
        told: Batch[KvEvent]
        if progress.epoch == self._epoch and sequence - 8 < wanted <= sequence + 1:
            told = Batch(sequence, self._recent[wanted - 1 :])
        else:
            told = Batch(sequence, list(self.held.snapshot()), reset=True)
        return list(wire.answer(SOURCE, self._epoch, told, MIN_MESSAGE_BYTES))


def _take(known: HeldBlocks, steps: list[Step]) -> None:
    for step in steps:
        if step.reset:
            for tier, namespace in list(everything(known)):
                known._held.pop((tier, namespace))
        for event in step.events:
            known.apply(event)


def test_the_log_and_the_double_agree() -> None:
    """What `_World.answer` gives is what a real log does."""
    log = new_log(1, 8)
    log.append([stored(i) for i in range(1, 12)])
    assert log.remembered(4) == [stored(i) for i in range(4, 12)]
    assert log.remembered(3) is None
