"""The write-ahead index on disk. Calls block; one thread at a time.

It grows by records, and is written anew, by way of another file and a rename, when most of its records are dead or when
a write to it has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from weir_kvstore.tiers.disk.files import NO_ROOM, Files
from weir_kvstore.tiers.disk.log import (
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    Kind,
    LiveSlots,
    LogDamagedError,
    Replayed,
    encode_file_header,
    encode_record,
    replay,
)

# The file grows ahead of its records, so that a free, which makes room, finds room itself on a full disk.
_STEP_BYTES: Final = 1024 * 1024
_CHUNK_RECORDS: Final = 32_768
# Below 2 MiB there is nothing to gain.
_SMALL_RECORDS: Final = 65_536
_DEAD_SHARE: Final = 4  # written anew at so many records for each live one

Change = tuple[Kind, int, int, int]  # kind, slot_bytes, slot, generation


def read_log(files: Files, path: Path) -> Replayed:
    """What the file says. Raises LogDamagedError, OSError."""
    if not path.exists():
        raise LogDamagedError("there is none")
    fd = files.open(path)
    try:
        size_bytes = files.size_bytes(fd)
        header = bytearray(min(FILE_HEADER_BYTES, size_bytes))
        files.read(fd, [memoryview(header)], 0)
        return replay(bytes(header), _chunks(files, fd, size_bytes))
    finally:
        files.close(fd)


def _chunks(files: Files, fd: int, size_bytes: int) -> Iterator[bytes]:
    for start in range(FILE_HEADER_BYTES, size_bytes, _CHUNK_RECORDS * RECORD_BYTES):
        chunk = bytearray(min(_CHUNK_RECORDS * RECORD_BYTES, size_bytes - start))
        files.read(fd, [memoryview(chunk)], start)
        yield bytes(chunk)


class LogFile:
    """Begins with a new file that holds what is live."""

    def __init__(self, files: Files, path: Path, live: LiveSlots, *, epoch: int, next_generation: int) -> None:
        self._files = files
        self._path = path
        self._live = live
        self._epoch = epoch
        self._next_generation = next_generation
        self._fd: int | None = None
        self._end = self._room = self._num_records = 0
        self._sound = False  # nothing has failed since it was written anew
        self._write_anew()

    def append(self, changes: Sequence[Change]) -> None:
        """All of them or, as far as anybody will find, none. Raises OSError; then the next call begins a new file."""
        if not self._sound or self._num_records > max(_SMALL_RECORDS, _DEAD_SHARE * len(self._live)):
            self._write_anew()
        assert self._fd is not None
        self._sound = False
        self._append(self._fd, changes)
        self._sound = True
        for change in changes:
            self._live.apply(*change)
        self._next_generation = max(self._next_generation, *(generation + 1 for *_, generation in changes))

    def sync(self) -> None:
        """Raises OSError. What the kernel still has of a file whose sync failed is not known: a new one is begun."""
        assert self._fd is not None
        self._sound = False
        self._files.sync(self._fd)
        self._sound = True

    def close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None

    def _write_anew(self) -> None:
        new_path = self._path.with_suffix(".new")
        self._files.remove(new_path)
        fd = self._files.open(new_path)
        try:
            self._epoch += 1
            self._files.write(fd, encode_file_header(self._epoch, self._next_generation), 0)
            self._end, self._room, self._num_records = FILE_HEADER_BYTES, 0, 0
            self._append(fd, ())
            for changes in _batches((Kind.COMMIT, *slot) for slot in self._live):
                self._append(fd, changes)
            self._files.sync(fd)
            self._files.replace(new_path, self._path)
        except BaseException:
            self._files.close(fd)
            self._sound = False
            raise
        self.close()
        self._fd = fd
        self._sound = True

    def _append(self, fd: int, changes: Sequence[Change]) -> None:
        records = b"".join(encode_record(*change, self._epoch) for change in changes)
        self._make_room(fd, len(records) + RECORD_BYTES)
        self._files.write(fd, records, self._end)
        self._end += len(records)
        self._num_records += len(changes)

    def _make_room(self, fd: int, size_bytes: int) -> None:
        """The file always ends in a record of zeros."""
        if self._end + size_bytes <= self._room:
            return
        room = self._end + size_bytes + _STEP_BYTES
        try:
            self._files.allocate(fd, 0, room)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            room = self._end + size_bytes
            self._files.truncate(fd, room)  # longer, in name only: the write itself may still find a page
        self._room = room


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    batch: list[Change] = []
    for change in changes:
        batch.append(change)
        if len(batch) == _CHUNK_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch
