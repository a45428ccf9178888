from __future__ import annotations

from collections.abc import Iterable

import pytest

from unit.kvstore.making import record
from weir_kvstore.block import Block
from weir_kvstore.notes import Notes

CHAIN = [Block(number, record(number), "ram") for number in range(1, 4)]


class Told:
    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def touch(self, blocks: Iterable[Block]) -> None:
        self.said += [("touch", block.block_id) for block in blocks]

    def refer(self, blocks: Iterable[Block]) -> None:
        self.said += [("refer", block.block_id) for block in blocks]


def test_they_are_told_once_in_the_order_in_which_they_came() -> None:
    told, notes = Told(), Notes()
    notes.add(told.refer, CHAIN)
    notes.add(told.touch, CHAIN[1:])
    assert (len(notes), told.said) == (4 + 3, [])
    notes.tell()
    assert told.said == [("refer", 1), ("refer", 2), ("refer", 3), ("touch", 2), ("touch", 3)]
    notes.tell()
    assert (len(notes), len(told.said)) == (0, 5)


def test_one_that_is_taken_back_is_never_told() -> None:
    told, notes = Told(), Notes()
    notes.add(told.refer, CHAIN)
    assert notes.has(CHAIN)
    assert not notes.take_back(told.touch, CHAIN), "that was not noted of them"
    assert not notes.take_back(told.refer, list(CHAIN)), "an equal list is another one"
    assert notes.take_back(told.refer, CHAIN)
    assert not notes.take_back(told.refer, CHAIN)
    notes.tell()
    assert (len(notes), notes.has(CHAIN), told.said) == (0, False, [])


def test_a_list_stands_there_once() -> None:
    told, notes = Told(), Notes()
    notes.add(told.refer, CHAIN)
    with pytest.raises(AssertionError):
        notes.add(told.touch, CHAIN)


def test_what_is_noted_while_they_are_told_is_for_the_next_time() -> None:
    told, notes = Told(), Notes()
    later = CHAIN[:1]
    notes.add(lambda _: notes.add(told.touch, later), CHAIN)
    notes.tell()
    assert told.said == []
    notes.tell()
    assert told.said == [("touch", 1)]
