"""Where things lie in a segment file. Pure.

A segment holds slots of one size, in groups: a table of the group's headers, then its payloads. So the payloads of
neighbours lie in sequence and are read in one request, and recovery reads little more than the tables.

    ┌─ group 0 ─────────────────────────────────────┐┌─ group 1 ───
    │ 64 headers │ payload 0 │ payload 1 │ … │  63   ││ 64 headers │
    └────────────┴───────────┴───────────┴───┴───────┘└────────────┴
      16 KiB       slot_bytes each
"""

from __future__ import annotations

from typing import Final

PAGE_BYTES: Final = 4096
HEADER_BYTES: Final = 256
GROUP_SLOTS: Final = 64
TABLE_BYTES: Final = GROUP_SLOTS * HEADER_BYTES


def slot_bytes_for(payload_bytes: int) -> int:
    """The size of the slots that hold such payloads: whole pages."""
    assert payload_bytes > 0, payload_bytes
    return -(-payload_bytes // PAGE_BYTES) * PAGE_BYTES


def charged_bytes(slot_bytes: int) -> int:
    """What a slot takes of the capacity."""
    return slot_bytes + HEADER_BYTES


def table_offset(slot_bytes: int, group: int) -> int:
    return group * (TABLE_BYTES + GROUP_SLOTS * slot_bytes)


def header_offset(slot_bytes: int, slot: int) -> int:
    return table_offset(slot_bytes, slot // GROUP_SLOTS) + slot % GROUP_SLOTS * HEADER_BYTES


def payload_offset(slot_bytes: int, slot: int) -> int:
    return table_offset(slot_bytes, slot // GROUP_SLOTS) + TABLE_BYTES + slot % GROUP_SLOTS * slot_bytes


def end_offset(slot_bytes: int, num_slots: int) -> int:
    """The length of a file that has so many whole slots."""
    return payload_offset(slot_bytes, num_slots - 1) + slot_bytes if num_slots else 0


def whole_slots(slot_bytes: int, file_bytes: int) -> int:
    """How many slots a file of this length has to their end."""
    group_bytes = table_offset(slot_bytes, 1)
    rest_bytes = max(0, file_bytes % group_bytes - TABLE_BYTES)
    return file_bytes // group_bytes * GROUP_SLOTS + rest_bytes // slot_bytes
