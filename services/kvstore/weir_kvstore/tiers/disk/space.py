"""Which slots there are, which are free, and who gets which. Pure: what it wants done to the files it returns.

A slot is *held* (claimed), *free* (it has its room on disk) or a *hole* (its room went to another size). Held and free
slots together never take more than the capacity; a claim that finds no free slot of its size takes the room of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from weir_kvstore.tiers.disk.geometry import charged_bytes, slot_bytes_for

# Block sizes differ by model and shard, not by request: one store sees a few. Each has an open file and a table.
MAX_SIZES: Final = 16
# A file grows by this much, so that it lies in few pieces; never by more than a sixteenth of the capacity.
_STEP_BYTES: Final = 64 * 1024 * 1024
# A chain's blocks come one after another: a claim that cannot go on behind the last one looks for so many in a row.
_RUN_SLOTS: Final = 16


@dataclass(frozen=True, slots=True)
class Allocate:
    """These slots shall have room on disk."""

    slot_bytes: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Punch:
    """The slot's room goes back to the file system."""

    slot_bytes: int
    slot: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Nobody holds a slot of this size any more: the file goes."""

    slot_bytes: int


Change: TypeAlias = Allocate | Punch | Retire


@dataclass(frozen=True, slots=True)
class Claim:
    slot_bytes: int
    slot: int
    changes: tuple[Change, ...]  # in this order, before the slot is written


@dataclass(slots=True)
class _Size:
    """The slots of one size."""

    slot_bytes: int
    free: bytearray = field(default_factory=bytearray)  # by slot; 1: free
    holes: list[int] = field(default_factory=list)
    num_free: int = 0
    num_held: int = 0
    next_slot: int = 0  # behind the one that was claimed last

    def take_free(self) -> int | None:
        """The slot behind the last one, else the beginning of a run, else any."""
        if not self.num_free:
            return None
        slot = self.next_slot if self._is_free(self.next_slot) else self._find(b"\1" * _RUN_SLOTS)
        if slot < 0:
            slot = self._find(b"\1")
        self.free[slot] = 0
        self.num_free -= 1
        return self._hold(slot)

    def take_hole(self) -> int | None:
        return self._hold(self.holes.pop()) if self.holes else None

    def grow(self, slots: int) -> int:
        """So many more slots, all of them free; returns the first."""
        first = len(self.free)
        self.free += b"\1" * slots
        self.num_free += slots
        return first

    def give_back(self, slot: int, *, has_room: bool) -> None:
        self.num_held -= 1
        if has_room:
            self.free[slot] = 1
            self.num_free += 1
        else:
            self.holes.append(slot)

    def make_hole(self) -> int:
        """Of the last free slot."""
        return self.lose(self.free.rindex(1))

    def lose(self, slot: int) -> int:
        """The free slot is a hole."""
        assert self.free[slot], slot
        self.free[slot] = 0
        self.num_free -= 1
        self.holes.append(slot)
        return slot

    def _is_free(self, slot: int) -> bool:
        return slot < len(self.free) and bool(self.free[slot])

    def _find(self, run: bytes) -> int:
        if len(run) > self.num_free:
            return -1
        found = self.free.find(run, self.next_slot)
        return found if found >= 0 else self.free.find(run)

    def _hold(self, slot: int) -> int:
        self.num_held += 1
        self.next_slot = slot + 1
        return slot


class Space:
    """Bounded by bytes, headers included."""

    def __init__(self, capacity_bytes: int) -> None:
        assert capacity_bytes > 0, capacity_bytes
        self._capacity_bytes = capacity_bytes
        self._limit_bytes = capacity_bytes  # lower while the file system gives no more
        self._sizes: dict[int, _Size] = {}
        self._held_bytes = 0
        self._free_bytes = 0

    @property
    def capacity_bytes(self) -> int:
        return max(self._limit_bytes, self._held_bytes)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def restore(self, held: Mapping[int, set[int]]) -> list[Punch]:
        """What the files of an earlier process have, once, before all else: by size, the slots that are held.

        Those before the last of them are free; those of them that do not fit in become holes.
        """
        for slot_bytes, slots in held.items():
            self._restore(_Size(slot_bytes), slots, max(slots) + 1)
        return [punch for size in self._sizes.values() for punch in self._make_holes(size, 0)]

    def claim(self, payload_bytes: int) -> Claim | None:
        """A slot for such a payload, or None without any effect."""
        found = self._size_for(slot_bytes_for(payload_bytes))
        if found is None:
            return None
        size, changes = found
        charge = charged_bytes(size.slot_bytes)
        if self._held_bytes + charge > self._limit_bytes:
            return None
        self._sizes.setdefault(size.slot_bytes, size)
        slot = size.take_free()
        if slot is None:
            slot = self._take_more(size, changes)
        else:
            self._free_bytes -= charge
        self._held_bytes += charge
        return Claim(size.slot_bytes, slot, tuple(changes))

    def free(self, slot_bytes: int, slot: int, *, has_room: bool) -> list[Punch]:
        """The slot is not held any more. Without room: the file system had none to give when it was written.

        Its room goes back where the capacity has become smaller meanwhile.
        """
        charge = charged_bytes(slot_bytes)
        size = self._sizes[slot_bytes]
        size.give_back(slot, has_room=has_room)
        self._held_bytes -= charge
        self._free_bytes += charge if has_room else 0
        return self._make_holes(size, 0)

    def resize(self, capacity_bytes: int) -> list[Punch]:
        """Bounded by this from now on. What is held stays until it is freed; free slots give back what is too much."""
        assert capacity_bytes > 0, capacity_bytes
        self._capacity_bytes = self._limit_bytes = capacity_bytes
        return [punch for size in self._sizes.values() for punch in self._make_holes(size, 0)]

    def not_allocated(self, change: Allocate) -> None:
        """The file system had no room for these: those of them that are free are holes."""
        size = self._sizes[change.slot_bytes]
        for slot in range(change.first, change.stop):
            if size.free[slot]:
                size.lose(slot)
                self._free_bytes -= charged_bytes(change.slot_bytes)

    def stop_growing(self) -> None:
        """What there is is all there is, until `grow_again`."""
        self._limit_bytes = min(self._capacity_bytes, self._held_bytes + self._free_bytes)

    def grow_again(self) -> None:
        self._limit_bytes = self._capacity_bytes

    def check_integrity(self) -> None:
        sizes = self._sizes.values()
        assert self._held_bytes == sum(size.num_held * charged_bytes(size.slot_bytes) for size in sizes)
        assert self._free_bytes == sum(size.num_free * charged_bytes(size.slot_bytes) for size in sizes)
        assert self._held_bytes + self._free_bytes <= max(self._capacity_bytes, self._held_bytes)
        assert len(self._sizes) <= MAX_SIZES
        for size in sizes:
            assert size.num_free == size.free.count(1)
            assert size.num_held + size.num_free + len(size.holes) == len(size.free)
            assert not any(size.free[slot] for slot in size.holes)

    def _restore(self, size: _Size, held: set[int], num_slots: int) -> None:
        slot_bytes = size.slot_bytes
        self._sizes[slot_bytes] = size
        size.free = bytearray(1 if slot not in held else 0 for slot in range(num_slots))
        size.num_held, size.num_free = len(held), num_slots - len(held)
        self._held_bytes += size.num_held * charged_bytes(slot_bytes)
        self._free_bytes += size.num_free * charged_bytes(slot_bytes)

    def _size_for(self, slot_bytes: int) -> tuple[_Size, list[Change]] | None:
        """The slots that fit best: exactly, in the place of a size that is out of use, or the next bigger ones."""
        if slot_bytes in self._sizes:
            return self._sizes[slot_bytes], []
        if len(self._sizes) < MAX_SIZES:
            return _Size(slot_bytes), []
        for size in self._sizes.values():
            if not size.num_held and self._held_bytes + charged_bytes(slot_bytes) <= self._limit_bytes:
                del self._sizes[size.slot_bytes]
                self._free_bytes -= size.num_free * charged_bytes(size.slot_bytes)
                return _Size(slot_bytes), [Retire(size.slot_bytes)]
        bigger = [size for size in self._sizes.values() if size.slot_bytes > slot_bytes]
        return (min(bigger, key=lambda size: size.slot_bytes), []) if bigger else None

    def _take_more(self, size: _Size, changes: list[Change]) -> int:
        """A slot that has no room yet; there is enough for it once others' free slots have given theirs."""
        charge = charged_bytes(size.slot_bytes)
        for other in list(self._sizes.values()):
            changes += self._make_holes(other, charge)
        hole = size.take_hole()
        if hole is not None:
            changes.append(Allocate(size.slot_bytes, hole, hole + 1))
            return hole
        left_bytes = self._limit_bytes - self._held_bytes - self._free_bytes
        step = max(1, min(_STEP_BYTES, self._capacity_bytes // 16, left_bytes) // charge)
        first = size.grow(step)
        changes.append(Allocate(size.slot_bytes, first, first + step))
        slot = size.take_free()
        assert slot is not None
        self._free_bytes += (step - 1) * charge
        return slot

    def _make_holes(self, size: _Size, wanted_bytes: int) -> list[Punch]:
        """Of this size's free slots, as many as stand in the way of so many bytes more."""
        punches: list[Punch] = []
        while size.num_free and self._held_bytes + self._free_bytes + wanted_bytes > self._limit_bytes:
            punches.append(Punch(size.slot_bytes, size.make_hole()))
            self._free_bytes -= charged_bytes(size.slot_bytes)
        return punches
