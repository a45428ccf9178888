from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_kvstore.tiers.disk.geometry import charged_bytes, slot_bytes_for
from weir_kvstore.tiers.disk.space import MAX_SIZES, Allocate, Change, Claim, Punch, Retire, Space

ROOM = charged_bytes(4096)


class Files:
    """What a file system would have of the changes that a space asks for."""

    def __init__(self) -> None:
        self.rooms: set[tuple[int, int]] = set()

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Allocate(slot_bytes, first, stop):
                    self.rooms |= {(slot_bytes, slot) for slot in range(first, stop)}
                case Punch(slot_bytes, slot):
                    self.rooms.remove((slot_bytes, slot))
                case Retire(retired):
                    self.rooms = {(slot_bytes, slot) for slot_bytes, slot in self.rooms if slot_bytes != retired}

    @property
    def bytes(self) -> int:
        return sum(charged_bytes(slot_bytes) for slot_bytes, _ in self.rooms)


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=60)
def test_no_slot_is_given_twice_and_the_files_never_exceed_the_capacity(seed: int, num_sizes: int) -> None:
    random_ = random.Random(seed)
    capacity_bytes = random_.randint(1, 60) * ROOM
    space, files, held = Space(capacity_bytes), Files(), dict[tuple[int, int], int]()
    for _ in range(200):
        payload_bytes = random_.randint(1, num_sizes * 4096)
        claim = space.claim(payload_bytes) if random_.random() < 0.6 else None
        if claim is not None:
            files.apply(claim.changes)
            place = (claim.slot_bytes, claim.slot)
            assert place not in held
            assert place in files.rooms
            assert claim.slot_bytes >= payload_bytes
            held[place] = claim.slot_bytes
        elif held and random_.random() < 0.7:
            place = random_.choice(sorted(held))
            del held[place]
            files.apply(space.free(*place, has_room=True))
        elif random_.random() < 0.2:
            capacity_bytes = random_.randint(1, 60) * ROOM
            files.apply(space.resize(capacity_bytes))
        space.check_integrity()
        assert space.held_bytes == sum(map(charged_bytes, held.values()))
        assert files.bytes <= max(capacity_bytes, space.held_bytes) == space.capacity_bytes


@given(st.integers(1, 5000), st.integers(1, 60))
def test_a_claim_succeeds_exactly_as_long_as_there_is_room(payload_bytes: int, rooms: int) -> None:
    space = Space(rooms * ROOM)
    fitting = rooms * ROOM // charged_bytes(slot_bytes_for(payload_bytes))
    assert [space.claim(payload_bytes) is not None for _ in range(fitting + 1)] == [True] * fitting + [False]


def test_a_chain_gets_slots_in_sequence_also_among_holes() -> None:
    space = Space(200 * ROOM)
    for _ in range(200):
        assert space.claim(4096)
    for slot in [*range(3, 90, 7), *range(100, 140)]:
        space.free(4096, slot, has_room=True)
    claims = [space.claim(4096) for _ in range(40)]
    assert [claim.slot for claim in claims if claim] == list(range(100, 140))


def test_free_slots_of_another_size_give_their_room_and_no_more_than_is_needed() -> None:
    space = Space(16 * ROOM)
    for _ in range(16):
        assert space.claim(4096)
    for slot in (1, 5, 9):
        space.free(4096, slot, has_room=True)
    claim = space.claim(8192)
    assert claim == Claim(8192, 0, (Punch(4096, 9), Punch(4096, 5), Allocate(8192, 0, 1)))
    assert space.claim(8192) is None
    again = space.claim(4096)
    assert again == Claim(4096, 1, ())
    space.check_integrity()


def test_the_room_of_a_hole_comes_back_before_the_file_grows() -> None:
    space = Space(4 * ROOM)
    for _ in range(4):
        assert space.claim(4096)
    for slot in range(3):
        space.free(4096, slot, has_room=True)
    big = space.claim(8192)
    assert big is not None
    space.free(8192, 0, has_room=True)
    claims = [space.claim(4096) for _ in range(3)]
    assert sorted(claim.slot for claim in claims if claim) == [0, 1, 2]


def test_sizes_are_bounded_one_out_of_use_makes_way_and_else_the_next_bigger_serves() -> None:
    space = Space(1000 * ROOM)
    for number in range(1, MAX_SIZES + 1):
        assert space.claim(2 * number * 4096)
    assert space.claim(4096) == Claim(8192, 1, ())
    assert space.claim(2 * MAX_SIZES * 4096 + 1) is None
    space.free(16384, 0, has_room=True)
    claim = space.claim(4096 * 1000 // 2)
    assert claim is not None
    assert claim.changes[0] == Retire(16384)
    space.check_integrity()


def test_while_the_file_system_has_no_more_what_there_is_is_the_capacity() -> None:
    space = Space(160 * ROOM)
    first = space.claim(4096)
    assert first == Claim(4096, 0, (Allocate(4096, 0, 10),))
    for _ in range(9):
        assert space.claim(4096)
    more = space.claim(4096)
    assert more == Claim(4096, 10, (Allocate(4096, 10, 20),))
    allocate = more.changes[0]
    assert isinstance(allocate, Allocate)
    space.not_allocated(allocate)
    space.stop_growing()
    assert space.capacity_bytes == space.held_bytes == 11 * ROOM
    assert space.claim(1) is None
    space.free(4096, 10, has_room=False)
    space.stop_growing()
    assert space.capacity_bytes == 10 * ROOM
    space.free(4096, 3, has_room=True)
    assert space.claim(1) == Claim(4096, 3, ())
    space.check_integrity()
    space.grow_again()
    assert space.capacity_bytes == 160 * ROOM
    assert space.claim(1) is not None
    space.check_integrity()


def test_what_an_earlier_process_left_is_taken_over_and_trimmed() -> None:
    space = Space(6 * ROOM)
    punches = space.restore({4096: {0, 3, 9}, 8192: {0}})
    assert len(punches) == 6, "three, and one of two rooms, are held; one room is left for seven"
    space.check_integrity()
    assert space.held_bytes == 3 * ROOM + charged_bytes(8192)
    assert space.claim(1) is not None
    assert space.claim(1) is None


def test_our_own_mistakes_are_asserted() -> None:
    with pytest.raises(AssertionError):
        Space(0)
    with pytest.raises(AssertionError):
        Space(ROOM).claim(0)
