"""What a stream has said: appended to, read from any place, bounded in bytes.

    entries   [accepted] [ ✗ ] [ ✗ ] [delta] [finished] [delta] …        ✗: dropped
               ▲ stays    the oldest deltas go when it is too large

Every other entry stays: there are few of them, and a reader needs each. A reader that wants a delta which has gone is
told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from weir.inference.v1.stream_pb2 import Delta
from weir.router.v1.retained_pb2 import RetainedEntry
from weir_chassis.errors import Internal, NotFound, WeirError
from weir_router.delivery import Event
from weir_router.retained.cut import Cut, Place, Places
from weir_router.retained.entry import end_of, entry_of, error_of

# Of an entry, besides its own bytes: the object's header and its place in the list.
_ENTRY_OVERHEAD_BYTES: Final = 48


class RetainedLog:
    """Entry i is the i-th that was ever added, whatever has been dropped."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: list[bytes | None] = []
        self._droppable = 0  # no delta is left before this entry
        self._ends: dict[int, Place] = {}
        self._dropped: dict[int, Place] = {}
        self.bytes = 0
        self.accepted = False
        self.ended = False
        self.error: WeirError | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def whole(self) -> bool:
        """Nothing of it has been dropped."""
        return not self._dropped

    def ends(self) -> Places:
        """How much of each output there is."""
        return self._ends

    def add(self, event: Event) -> None:
        """Raises Internal for a delta that does not follow the one before it."""
        self._add(entry_of(event))

    def end(self, error: WeirError | None) -> None:
        """No more entries. The first end counts."""
        if not self.ended:
            self._add(end_of(error))
            self.error = error

    def load(self, data: bytes) -> None:
        """An entry of the same log elsewhere. Raises as `add` does."""
        self._add(RetainedEntry.FromString(data), data)

    def read(self, position: int, count: int) -> Sequence[bytes | None]:
        """At most so many entries from this one on; None for each that has been dropped."""
        return self._entries[position : position + count]

    def entries(self) -> Sequence[RetainedEntry]:
        """All of them. The log must be whole."""
        assert self.whole, "the beginning has been dropped"
        return [RetainedEntry.FromString(data) for data in self._entries if data is not None]

    def shrink(self, num_bytes: int) -> None:
        """Its oldest deltas go until it has so many bytes less, as far as there are any; it grows no further."""
        self._max_bytes = max(0, self.bytes - num_bytes)
        self._drop()

    def dropped(self) -> Places:
        """How much of each output has been dropped."""
        return self._dropped

    def cut(self, wanted: Places) -> Cut:
        """Of a reader that begins now. Raises NotFound when the log has dropped what is wanted."""
        cut = Cut(wanted)
        if not cut.skip(self._dropped):
            kept = {str(index): str(place.next_token) for index, place in self._dropped.items()}
            raise NotFound("the stream's beginning", f"kept of outputs from tokens on: {kept}", metadata=kept)
        return cut

    def _add(self, entry: RetainedEntry, data: bytes | None = None) -> None:
        assert not self.ended, "an ended log takes nothing in"
        match entry.WhichOneof("entry"):
            case "accepted":
                if self.accepted:
                    return  # by whoever went on with it: the client is told once
                self.accepted = True
            case "delta":
                self._ends[entry.delta.output_index] = self._after(entry.delta, self._ends)
            case "end":
                self.ended, self.error = True, error_of(entry.end)
        data = entry.SerializeToString() if data is None else data
        self._entries.append(data)
        self.bytes += len(data) + _ENTRY_OVERHEAD_BYTES
        self._drop()

    def _after(self, delta: Delta, ends: Places) -> Place:
        place = ends.get(delta.output_index, Place(0, 0))
        if delta.first_token_index != place.next_token:
            where = f"output {delta.output_index}: token {delta.first_token_index} after {place.next_token}"
            raise Internal(f"{where}; a delta was lost or repeated")
        assert place.text_bytes is not None
        return Place(place.next_token + len(delta.token_ids), place.text_bytes + len(delta.text.encode()))

    def _drop(self) -> None:
        while self.bytes > self._max_bytes and self._droppable < len(self._entries) - 1:
            data = self._entries[self._droppable]
            assert data is not None
            entry = RetainedEntry.FromString(data)
            if entry.HasField("delta"):
                self._dropped[entry.delta.output_index] = self._after(entry.delta, self._dropped)
                self._entries[self._droppable] = None
                self.bytes -= len(data) + _ENTRY_OVERHEAD_BYTES
            self._droppable += 1
