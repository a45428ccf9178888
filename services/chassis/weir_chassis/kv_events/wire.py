"""How a source's log travels: subjects, and batches that fit a message. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from weir.inference.v1.kv_event_pb2 import KvEvent, KvEventBatch
from weir.kvstore.v1.block_hash import DIGEST_BYTES
from weir_chassis.event_log import Batch
from weir_chassis.kv_events.blocks import told

MAX_NAME_BYTES: Final = 255  # of a source
_EVENTS, _SNAPSHOT = "weir.kv.events", "weir.kv.snapshot"
# Written and read in about a millisecond, so that nothing else waits for long; NATS takes 1 MiB unless it is told less.
_MAX_BATCH_BYTES: Final = 256 * 1024
# All of a batch besides its events: two names of at most 255 bytes, and numbers.
_ENVELOPE_BYTES: Final = 1024
# The largest event and its batch. A bus that takes less cannot carry events.
MIN_MESSAGE_BYTES: Final = 48 * 1024


class Source(NamedTuple):
    """Who holds blocks, and tells of them."""

    service: str  # "executor", "kvstore"
    name: str


def source_of(batch: KvEventBatch) -> Source:
    return Source(batch.service, batch.source)


def events_subject(source: Source) -> str:
    return f"{_EVENTS}.{source.service}.{_token(source.name)}"


def events_of_all(service: str) -> str:
    """What to subscribe to, to hear every source of a service."""
    return f"{_EVENTS}.{service}.*"


def snapshot_subject(source: Source) -> str:
    return f"{_SNAPSHOT}.{source.service}.{_token(source.name)}"


def batches(
    source: Source, epoch: int, sequence: int, events: Sequence[KvEvent], max_bytes: int
) -> Iterator[KvEventBatch]:
    """Events up to number `sequence`, in as few messages of at most `max_bytes` as they need."""
    first = sequence - len(events) + 1
    for part in _parts(events, max_bytes):
        last = first + len(part) - 1
        yield KvEventBatch(service=source.service, source=source.name, epoch=epoch, sequence=last, events=part)
        first = last + 1


def heartbeat(source: Source, epoch: int, sequence: int) -> KvEventBatch:
    return KvEventBatch(service=source.service, source=source.name, epoch=epoch, sequence=sequence)


def answer(source: Source, epoch: int, batch: Batch[KvEvent], max_bytes: int) -> Iterator[KvEventBatch]:
    """What a log gave, in pieces: at least one, and the last one says so."""
    if batch.reset:
        parts = _parts(told(batch), max_bytes)
        pieces = [KvEventBatch(epoch=epoch, sequence=batch.sequence, events=part) for part in parts]
    else:
        pieces = list(batches(source, epoch, batch.sequence, batch.events, max_bytes))
    pieces = pieces or [heartbeat(source, epoch, batch.sequence)]
    for number, piece in enumerate(pieces):
        piece.service, piece.source = source
        piece.piece, piece.last_piece = number, number == len(pieces) - 1
        yield piece


def parse(payload: bytes) -> KvEventBatch | None:
    """None for whatever is no batch: anybody may publish anything."""
    try:
        batch = KvEventBatch.FromString(payload)
    except DecodeError:
        return None
    named = batch.service and 0 < len(batch.source.encode()) <= MAX_NAME_BYTES
    return batch if named and all(map(_is_whole, batch.events)) else None


def is_reset(batch: KvEventBatch) -> bool:
    """Whether it begins a snapshot."""
    return bool(batch.events) and batch.events[0].HasField("reset")


def _is_whole(event: KvEvent) -> bool:
    hash_bytes = len(event.stored.block_hashes) + len(event.removed.block_hashes)
    return event.WhichOneof("event") is not None and hash_bytes % DIGEST_BYTES == 0


def _parts(events: Sequence[KvEvent], max_bytes: int) -> Iterator[list[KvEvent]]:
    assert max_bytes >= MIN_MESSAGE_BYTES, max_bytes
    room = min(max_bytes, _MAX_BATCH_BYTES) - _ENVELOPE_BYTES
    part: list[KvEvent] = []
    size = 0
    for event in events:
        event_bytes = event.ByteSize() + 8  # and its tag and length
        if part and size + event_bytes > room:
            yield part
            part, size = [], 0
        part.append(event)
        size += event_bytes
    if part:
        yield part


def _token(name: str) -> str:
    """The name as one token of a subject; different names are different tokens."""
    return re.sub(rb"[^A-Za-z0-9-]", lambda found: b"=%02X" % found[0][0], name.encode()).decode()
