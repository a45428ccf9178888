"""What an earlier process left: the log says which slots count, the slots say what is in them. Calls block.

Without a log that can be relied on, every slot counts whose header does: the rebuilt index is the one that was lost,
for the headers of freed slots are cleared. Whatever does not count has no header afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from weir_chassis.telemetry import get_logger
from weir_kvstore.tiers.disk.directory import Directory
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import charged_bytes
from weir_kvstore.tiers.disk.header import SlotHeader, decode
from weir_kvstore.tiers.disk.log import Kind, LiveSlots, LogDamagedError, Replayed
from weir_kvstore.tiers.disk.log_file import read_log
from weir_kvstore.tiers.disk.segment import Segment, Segments


class Found(NamedTuple):
    """A block, and where it is."""

    slot_bytes: int
    slot: int
    header: SlotHeader


@dataclass(frozen=True, slots=True)
class Left:
    blocks: list[Found]  # all that count, the oldest first
    live: LiveSlots
    epoch: int
    next_generation: int


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing that recovery makes is garbage, and the collector would walk through all of it over and over."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def recover(files: Files, directory: Directory, segments: Segments, capacity_bytes: int) -> Left:
    """Raises OSError."""
    sizes = directory.segment_sizes()
    log = _read_log(files, directory, rebuild=bool(sizes))
    told = [block for slot_bytes in sizes for block in _told(segments[slot_bytes])]
    found = [block for block in told if _counts(block, log)]
    found.sort(key=lambda block: block.header.generation)
    kept, dropped = _chosen(found, capacity_bytes)
    for block in (*dropped, *(block for block in told if not _counts(block, log))):
        _clear(segments[block.slot_bytes], block.slot)
    live = LiveSlots()
    for block in kept:
        live.apply(Kind.COMMIT, block.slot_bytes, block.slot, block.header.generation)
    get_logger().info(
        "disk_tier_recovered",
        directory=str(directory.path),
        blocks=len(kept),
        lost=len(log.live) - len(found) if log else 0,  # the log named them, and their headers did not
        dropped=len(dropped),  # older than another of the same address, or more than the capacity
    )
    # Also above those that do not count: a power loss may bring their headers back, and no later commit is theirs.
    next_generation = max([log.next_generation if log else 1, *(block.header.generation + 1 for block in told)])
    _shorten(segments, sizes, kept)
    return Left(kept, live, log.epoch if log else 0, next_generation)


def _read_log(files: Files, directory: Directory, *, rebuild: bool) -> Replayed | None:
    try:
        return read_log(files, directory.log_path)
    except (LogDamagedError, OSError) as error:
        if rebuild:
            get_logger().warning("disk_index_rebuilt_from_segments", directory=str(directory.path), reason=str(error))
        return None


def _told(segment: Segment) -> Iterator[Found]:
    """What its headers say. One that says nothing is cleared."""
    for slot, raw in segment.headers():
        header = decode(raw, segment.slot_bytes, slot)
        if header is None:
            _clear(segment, slot)
        else:
            yield Found(segment.slot_bytes, slot, header)


def _counts(block: Found, log: Replayed | None) -> bool:
    return log is None or log.live.generation(block.slot_bytes, block.slot) == block.header.generation


def _chosen(found: Sequence[Found], capacity_bytes: int) -> tuple[list[Found], list[Found]]:
    """Kept and dropped, both the oldest first. Pure.

    Of several with one address the last counts: the others were hidden already, and not yet freed. When the capacity is
    smaller than it was, the oldest go.
    """
    newest = {block.header.record.address: block for block in found}
    kept: list[Found] = []
    dropped: list[Found] = []
    for block in reversed(found):
        charge = charged_bytes(block.slot_bytes)
        if newest[block.header.record.address] is block and charge <= capacity_bytes:
            capacity_bytes -= charge
            kept.append(block)
        else:
            dropped.append(block)
    return kept[::-1], dropped[::-1]


def _clear(segment: Segment, slot: int) -> None:
    # One that cannot be cleared counts for nothing beside a log that does not name it.
    with suppress(OSError):
        segment.clear_header(slot)


def _shorten(segments: Segments, sizes: Sequence[int], kept: Sequence[Found]) -> None:
    """Every file ends behind its last block; those without one are gone."""
    num_slots: dict[int, int] = {}
    for block in kept:
        num_slots[block.slot_bytes] = max(num_slots.get(block.slot_bytes, 0), block.slot + 1)
    for slot_bytes in sizes:
        if slot_bytes in num_slots:
            segments[slot_bytes].keep(num_slots[slot_bytes])
        else:
            segments.remove(slot_bytes)
