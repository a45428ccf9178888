"""What a follower knows of one source's log: up to where, and whether it must ask. Pure.

Batches may be lost, come twice, come late and come in any order. One that follows what is known is taken; one that
comes too early is kept for a while; and whatever shows that something is missing, a number that was jumped over or
another epoch, makes the follower ask. Only an answer changes the epoch: a batch from before a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1.kv_event_pb2 import KvEvent, KvEventBatch
from weir_chassis.kv_events.wire import is_reset

# Kept while an answer is under way: about a second of a busy source. Of more, the answer after that one tells.
_MAX_EARLY: Final = 64


@dataclass(frozen=True, slots=True)
class Step:
    """What a follower hands on. After a `reset`, all before it is void."""

    events: Sequence[KvEvent]
    reset: bool = False


class Progress:
    """Nothing is known at first, and must be asked for."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.sequence = 0  # of the last event that was handed on
        self._heard_epoch: int | None = None  # of whatever was heard last
        self._newest = 0  # that was heard of in this epoch
        self._early: dict[tuple[int, int], KvEventBatch] = {}  # by epoch and sequence

    @property
    def must_ask(self) -> bool:
        return self.epoch is None or self._heard_epoch != self.epoch or self._newest > self.sequence

    def hear(self, batch: KvEventBatch) -> list[Step]:
        """A batch that was published, or one that an answer repeats."""
        self._heard_epoch = batch.epoch
        if batch.epoch == self.epoch:
            self._newest = max(self._newest, batch.sequence)
        if batch.events and (len(self._early) < _MAX_EARLY or self._is_next(batch)):
            self._early[batch.epoch, batch.sequence] = batch
        return self._take_early()

    def take_answer(self, pieces: Sequence[KvEventBatch]) -> list[Step]:
        """A whole answer."""
        first = pieces[0]
        # The source has said which epoch it is in: what strayed here from another is of no use.
        self._early = {key: batch for key, batch in self._early.items() if key[0] == first.epoch}
        if not is_reset(first):
            return [step for piece in pieces for step in self.hear(piece)]
        if first.epoch == self.epoch and first.sequence < self.sequence:
            return []  # it was overtaken by what it should have repaired
        self.epoch = self._heard_epoch = first.epoch
        self.sequence = first.sequence
        self._newest = max([first.sequence, *(sequence for _, sequence in self._early)])
        return [Step(first.events[1:], reset=True), *(Step(piece.events) for piece in pieces[1:]), *self._take_early()]

    def _take_early(self) -> list[Step]:
        """Takes what follows on what is known, and forgets what is known."""
        steps: list[Step] = []
        while (batch := self._next()) is not None:
            first = batch.sequence - len(batch.events) + 1
            steps.append(Step(batch.events[self.sequence + 1 - first :]))
            self.sequence = batch.sequence
        if self._early:
            known = (self.epoch, self.sequence)
            self._early = {key: batch for key, batch in self._early.items() if key[0] != known[0] or key[1] > known[1]}
        return steps

    def _next(self) -> KvEventBatch | None:
        return next((batch for batch in self._early.values() if self._is_next(batch)), None)

    def _is_next(self, batch: KvEventBatch) -> bool:
        """Whether it begins at or before the next event, and brings it."""
        return batch.epoch == self.epoch and batch.sequence - len(batch.events) <= self.sequence < batch.sequence
