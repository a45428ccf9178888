"""One segment file: slots of one size. Calls block; they run on the tier's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from weir_chassis.telemetry import get_logger
from weir_kvstore.record import Bytes
from weir_kvstore.tiers.disk import geometry
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import GROUP_SLOTS, HEADER_BYTES, TABLE_BYTES
from weir_kvstore.tiers.disk.header import EMPTY


class Segment:
    """Open from its making until `close`. Everything raises OSError."""

    def __init__(self, files: Files, path: Path, slot_bytes: int, *, direct: bool = False) -> None:
        """`direct`: payloads are read past the page cache."""
        self.slot_bytes = slot_bytes
        self.path = path
        self._files = files
        self._fd = files.open(path)
        try:
            self._direct_fd = files.open_direct(path) if direct else None
        except BaseException:
            files.close(self._fd)
            raise

    def num_slots(self) -> int:
        """Those that the file has to their end."""
        return geometry.whole_slots(self.slot_bytes, self._files.size_bytes(self._fd))

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """(slot, raw header) of every whole slot that is not empty, table by table. Those of a bad table are lost."""
        num_slots = self.num_slots()
        table = bytearray(TABLE_BYTES)
        for first in range(0, num_slots, GROUP_SLOTS):
            try:
                self._files.read(self._fd, [memoryview(table)], geometry.header_offset(self.slot_bytes, first))
            except OSError as error:
                get_logger().error("disk_headers_unreadable", segment=str(self.path), slot=first, error=str(error))
                continue
            raw = bytes(table)
            for slot in range(first, min(first + GROUP_SLOTS, num_slots)):
                at = (slot - first) * HEADER_BYTES
                if raw[at]:
                    yield slot, raw[at : at + HEADER_BYTES]

    def write_header(self, slot: int, raw: bytes) -> None:
        assert len(raw) == HEADER_BYTES
        self._files.write(self._fd, raw, geometry.header_offset(self.slot_bytes, slot))

    def clear_header(self, slot: int) -> None:
        self.write_header(slot, EMPTY)

    def write(self, slot: int, offset: int, piece: Bytes) -> None:
        assert 0 <= offset <= offset + len(piece) <= self.slot_bytes, (offset, len(piece), self.slot_bytes)
        self._files.write(self._fd, piece, geometry.payload_offset(self.slot_bytes, slot) + offset)

    def read(self, into: Sequence[memoryview], position: int) -> None:
        """One range of the file, `position` its first byte, into these buffers one after another."""
        if self._direct_fd is None:
            self._files.read(self._fd, into, position)
        else:
            self._files.read_direct(self._direct_fd, into, position)

    def allocate(self, first: int, stop: int) -> None:
        """Room for these slots, in which nobody has written yet, and the tables among them: all of it or none."""
        payloads, end = geometry.payload_offset(self.slot_bytes, first), geometry.end_offset(self.slot_bytes, stop)
        start = geometry.header_offset(self.slot_bytes, first) if first % GROUP_SLOTS == 0 else payloads
        try:
            self._files.allocate(self._fd, start, end - start)
        except OSError:
            with suppress(OSError):  # what there was of it; a table before them may be in use, one among them is not
                self._files.punch(self._fd, payloads, end - payloads)
            raise

    def punch(self, slot: int) -> None:
        self._files.punch(self._fd, geometry.payload_offset(self.slot_bytes, slot), self.slot_bytes)

    def keep(self, num_slots: int) -> None:
        """The file ends behind so many slots."""
        self._files.truncate(self._fd, geometry.end_offset(self.slot_bytes, num_slots))

    def sync(self) -> None:
        self._files.sync(self._fd)

    def close(self) -> None:
        self._files.close(self._fd)
        if self._direct_fd is not None:
            self._files.close(self._direct_fd)


class Segments:
    """The segments by their slots' size, opened when they are first used. May be called from several threads."""

    def __init__(self, files: Files, path_of: Callable[[int], Path], *, direct: bool = False) -> None:
        self._files = files
        self._path_of = path_of
        self._direct = direct
        self._open: dict[int, Segment] = {}
        self._lock = threading.Lock()

    def __getitem__(self, slot_bytes: int) -> Segment:
        with self._lock:
            if slot_bytes not in self._open:
                self._open[slot_bytes] = Segment(
                    self._files, self._path_of(slot_bytes), slot_bytes, direct=self._direct
                )
            return self._open[slot_bytes]

    def remove(self, slot_bytes: int) -> None:
        """The file is gone, and its room."""
        with self._lock:
            segment = self._open.pop(slot_bytes, None)
            if segment is not None:
                segment.close()
            self._files.remove(self._path_of(slot_bytes))

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
