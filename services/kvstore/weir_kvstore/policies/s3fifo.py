"""S3-FIFO: a small queue that the many used once leave soon, a main queue of those used again. Pure.

Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, with sizes in bytes.

    new ──▶ small, a tenth ──┬─ used twice since ──▶ main ──┬─ used since: one use fewer, and to its end again
                             └─ else ──▶ gone, and its address to the ghosts ──▶ (comes again) main
                                                            └─ else ──▶ gone
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import Final

from weir_kvstore.policies.policy import MAX_REMEMBERED_BLOCKS
from weir_kvstore.policies.ranked import Ranked
from weir_kvstore.policies.remembered import Remembered

MAX_USES: Final = 3  # two bits
PROMOTED_USES: Final = 2
# Of all bytes; the paper's choice, and what it found to matter little.
SMALL_PART: Final = 0.1


@dataclass(slots=True)
class _Place:
    address: bytes
    in_main: bool
    uses: int = 0
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class _Named:
    """Named as a victim and still here."""

    size_bytes: int
    place: _Place


class S3Fifo:
    """A block that is named as a victim and used all the same counts as one that came again.

    A block that was leased comes back to its place. A block whose chain grows is as young as its youngest block.
    """

    def __init__(self) -> None:
        self._arrivals = count()
        self._small: Ranked[int] = Ranked()
        self._main: Ranked[int] = Ranked()
        self._places: dict[int, _Place] = {}  # of both queues
        self._named: OrderedDict[int, _Named] = OrderedDict()  # in neither, the next to go first
        self._named_bytes = 0
        self._ghosts: OrderedDict[bytes, int] = OrderedDict()  # address → bytes, the next to be forgotten first
        self._ghost_bytes = 0
        self._leased: Remembered[int, _Place] = Remembered(MAX_REMEMBERED_BLOCKS)

    def __len__(self) -> int:
        return len(self._places) + len(self._named)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._places or block_id in self._named

    @property
    def size_bytes(self) -> int:
        return self._small.size_bytes + self._main.size_bytes + self._named_bytes

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None:
        assert block_id not in self, block_id
        came_again = self._forget_ghost(address)
        place = self._leased.recall(block_id)
        if place is None:
            place = _Place(address, in_main=came_again, arrival=next(self._arrivals))
        else:
            place.uses = min(MAX_USES, place.uses + 1)
        self._put(block_id, size_bytes, place)

    def remove(self, block_id: int) -> None:
        if (named := self._named.get(block_id)) is not None:
            if not named.place.in_main:
                self._keep_ghost(named)
            self._leased.keep(block_id, self._unname(block_id).place)
        else:
            self._leased.keep(block_id, self._take(block_id)[0])

    def touch(self, block_id: int) -> None:
        if block_id in self._named:
            self._return(block_id)
        else:
            place = self._places[block_id]
            place.uses = min(MAX_USES, place.uses + 1)

    def renew(self, block_id: int) -> None:
        if block_id in self._named:
            self._return(block_id)
        elif (place := self._places.get(block_id)) is not None:
            place.arrival = next(self._arrivals)
            self._queue(place).move(block_id, place.arrival)
        elif (place := self._leased.peek(block_id)) is not None:
            place.arrival = next(self._arrivals)

    def victims(self, *, size_bytes: int, blocks: int) -> list[int] | None:
        if size_bytes > self.size_bytes or blocks > len(self):
            return None
        while size_bytes > self._named_bytes or blocks > len(self._named):
            self._advance()
        chosen: list[int] = []
        for block_id, named in self._named.items():
            if size_bytes <= 0 and len(chosen) >= blocks:
                break
            chosen.append(block_id)
            size_bytes -= named.size_bytes
        return chosen

    def check_integrity(self) -> None:
        self._small.check_integrity()
        self._main.check_integrity()
        assert len(self._small) + len(self._main) == len(self._places)
        assert all(block_id in self._queue(place) for block_id, place in self._places.items())
        assert not self._places.keys() & self._named.keys()
        assert self._named_bytes == sum(named.size_bytes for named in self._named.values())
        assert self._ghost_bytes == sum(self._ghosts.values())
        assert all(0 <= place.uses <= MAX_USES for place in self._places.values())

    def _advance(self) -> None:
        """Looks at the next block: it is named, or goes on to where its uses have brought it."""
        if len(self._small) and (not len(self._main) or self._small.size_bytes >= SMALL_PART * self.size_bytes):
            block_id, stays = self._small.first(), PROMOTED_USES
        else:
            block_id, stays = self._main.first(), 1
        place, size_bytes = self._take(block_id)
        if place.uses < stays:
            self._named[block_id] = _Named(size_bytes, place)
            self._named_bytes += size_bytes
            return
        place.uses = place.uses - 1 if place.in_main else 0
        place.in_main = True
        place.arrival = next(self._arrivals)
        self._put(block_id, size_bytes, place)

    def _queue(self, place: _Place) -> Ranked[int]:
        return self._main if place.in_main else self._small

    def _put(self, block_id: int, size_bytes: int, place: _Place) -> None:
        self._places[block_id] = place
        self._queue(place).add(block_id, size_bytes, place.arrival)

    def _take(self, block_id: int) -> tuple[_Place, int]:
        place = self._places.pop(block_id)
        queue = self._queue(place)
        size_bytes = queue.size_of(block_id)
        queue.remove(block_id)
        return place, size_bytes

    def _unname(self, block_id: int) -> _Named:
        """The block is a victim no more: where it would be had it come again now."""
        named = self._named.pop(block_id)
        self._named_bytes -= named.size_bytes
        place = named.place
        place.in_main, place.uses, place.arrival = True, 0, next(self._arrivals)
        return named

    def _return(self, block_id: int) -> None:
        named = self._unname(block_id)
        self._put(block_id, named.size_bytes, named.place)

    def _keep_ghost(self, named: _Named) -> None:
        """No more ghosts than blocks, nor of more bytes."""
        self._forget_ghost(named.place.address)
        self._ghosts[named.place.address] = named.size_bytes
        self._ghost_bytes += named.size_bytes
        while self._ghost_bytes > self.size_bytes or len(self._ghosts) > len(self):
            self._forget_ghost(next(iter(self._ghosts)))

    def _forget_ghost(self, address: bytes) -> bool:
        """Whether there was one."""
        size_bytes = self._ghosts.pop(address, None)
        self._ghost_bytes -= size_bytes or 0
        return size_bytes is not None
