"""The format of the write-ahead index: which slots hold a committed block. Pure.

    header 64 │ record 32 │ record 32 │ … │ zeros to the end of the file, at least one record of them

A record is `kind 4 │ slot 4 │ slot_bytes 8 │ generation 8 │ XXH3-64 of these, seeded with the file's epoch 8`. What the
block is stands in its slot's header. A file that ends otherwise than in zeros was cut off; one bad byte anywhere and
the whole file counts for nothing, for a lost free would bring a block back: the segments then tell what they hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

VERSION: Final = 1
RECORD_BYTES: Final = 32
FILE_HEADER_BYTES: Final = 64
_MAGIC: Final = b"WEIRKVIX"
_FILE_HEADER: Final = Struct("<8sQQQ24x")  # then a Q: the checksum of it
_RECORD: Final = Struct("<IIQQ")  # then a Q likewise
_CHECKED_RECORD: Final = Struct("<24sQ")
_CHECK: Final = Struct("<Q")
_END: Final = bytes(RECORD_BYTES)
_GROWTH_SLOTS: Final = 1024  # 8 KiB


class Kind(IntEnum):
    COMMIT = 1
    FREE = 2


class LogDamagedError(Exception):
    """The file says nothing that may be relied on."""


class LiveSlots:
    """The generation that each slot holds: 8 bytes a slot."""

    def __init__(self) -> None:
        self._generations: dict[int, array[int]] = {}  # slot_bytes → by slot; 0: empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(slot_bytes, slot, generation)"""
        for slot_bytes, generations in self._generations.items():
            for slot, generation in enumerate(generations):
                if generation:
                    yield slot_bytes, slot, generation

    def generation(self, slot_bytes: int, slot: int) -> int:
        generations = self._generations.get(slot_bytes)
        return generations[slot] if generations is not None and slot < len(generations) else 0

    def apply(self, kind: int, slot_bytes: int, slot: int, generation: int) -> None:
        """A free of another generation than the one that is there is an older one's, and changes nothing."""
        held = self.generation(slot_bytes, slot)
        if kind == Kind.COMMIT:
            self._set(slot_bytes, slot, generation)
            self._count += not held
        elif held == generation:
            self._set(slot_bytes, slot, 0)
            self._count -= 1

    def _set(self, slot_bytes: int, slot: int, generation: int) -> None:
        generations = self._generations.setdefault(slot_bytes, array("Q"))
        if slot >= len(generations):
            generations.frombytes(bytes(8 * (slot + _GROWTH_SLOTS - len(generations))))
        generations[slot] = generation


@dataclass(frozen=True, slots=True)
class Replayed:
    epoch: int
    next_generation: int
    live: LiveSlots


def encode_file_header(epoch: int, next_generation: int) -> bytes:
    body = _FILE_HEADER.pack(_MAGIC, VERSION, epoch, next_generation)
    return body + _CHECK.pack(xxh3_64_intdigest(body))


def encode_record(kind: Kind, slot_bytes: int, slot: int, generation: int, epoch: int) -> bytes:
    body = _RECORD.pack(kind, slot, slot_bytes, generation)
    return body + _CHECK.pack(xxh3_64_intdigest(body, epoch))


def replay(file_header: bytes, chunks: Iterable[bytes]) -> Replayed:
    """What the log says in the end. Every chunk but the last is whole records. Raises LogDamagedError."""
    epoch, next_generation = _decode_file_header(file_header)
    live = LiveSlots()
    ended = False
    for chunk in chunks:
        end = chunk.find(_END) if not ended else 0
        while end > 0 and end % RECORD_BYTES:  # a record may begin or end in zeros
            end = chunk.find(_END, end + 1)
        ended = ended or end >= 0
        told = chunk[:end] if end >= 0 else chunk
        if chunk.count(0, len(told)) != len(chunk) - len(told):
            raise LogDamagedError("something follows its end")
        next_generation = max(next_generation, _replay_records(told, epoch, live))
    if not ended:
        raise LogDamagedError("it was cut off")
    return Replayed(epoch, next_generation, live)


def _replay_records(records: bytes, epoch: int, live: LiveSlots) -> int:
    """Returns the first generation that is greater than all of theirs."""
    if len(records) % RECORD_BYTES:
        raise LogDamagedError("it was cut off within a record")
    next_generation = 0
    for body, check in _CHECKED_RECORD.iter_unpack(records):
        if xxh3_64_intdigest(body, epoch) != check:
            raise LogDamagedError("a record does not match its checksum")
        kind, slot, slot_bytes, generation = _RECORD.unpack(body)
        live.apply(kind, slot_bytes, slot, generation)
        if generation >= next_generation:
            next_generation = generation + 1
    return next_generation


def _decode_file_header(raw: bytes) -> tuple[int, int]:
    """Epoch and next generation."""
    if len(raw) != FILE_HEADER_BYTES or _CHECK.unpack_from(raw, _FILE_HEADER.size)[0] != xxh3_64_intdigest(
        raw[: _FILE_HEADER.size]
    ):
        raise LogDamagedError("its header does not match its checksum")
    magic, version, epoch, next_generation = _FILE_HEADER.unpack_from(raw)
    if magic != _MAGIC or version != VERSION:
        raise LogDamagedError("its header is of another kind")
    return epoch, next_generation
