from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.tiers.disk.geometry import (
    GROUP_SLOTS,
    HEADER_BYTES,
    PAGE_BYTES,
    end_offset,
    header_offset,
    payload_offset,
    slot_bytes_for,
    whole_slots,
)

_SLOT_BYTES = st.integers(1, 100).map(lambda pages: pages * PAGE_BYTES)


@given(st.integers(1, 10**6))
def test_slots_are_the_fewest_pages_that_hold_a_payload(payload_bytes: int) -> None:
    slot_bytes = slot_bytes_for(payload_bytes)
    assert slot_bytes % PAGE_BYTES == 0
    assert slot_bytes - PAGE_BYTES < payload_bytes <= slot_bytes


@given(_SLOT_BYTES)
def test_headers_and_payloads_fill_the_file_without_a_gap(slot_bytes: int) -> None:
    num_slots = 2 * GROUP_SLOTS
    ranges = [(header_offset(slot_bytes, slot), HEADER_BYTES) for slot in range(num_slots)]
    ranges += [(payload_offset(slot_bytes, slot), slot_bytes) for slot in range(num_slots)]
    at = 0
    for start, length in sorted(ranges):
        assert start == at
        at += length
    assert at == end_offset(slot_bytes, num_slots)


@given(_SLOT_BYTES, st.integers(0, 1000))
def test_payloads_lie_on_pages_and_neighbours_in_sequence(slot_bytes: int, slot: int) -> None:
    assert payload_offset(slot_bytes, slot) % PAGE_BYTES == 0
    if (slot + 1) % GROUP_SLOTS:
        assert payload_offset(slot_bytes, slot + 1) == payload_offset(slot_bytes, slot) + slot_bytes


@given(_SLOT_BYTES, st.integers(0, 1000), st.data())
def test_a_file_has_the_slots_that_it_has_to_their_end(slot_bytes: int, num_slots: int, data: st.DataObject) -> None:
    end = end_offset(slot_bytes, num_slots)
    assert whole_slots(slot_bytes, end) == num_slots
    until_next = end_offset(slot_bytes, num_slots + 1) - end
    assert whole_slots(slot_bytes, end + data.draw(st.integers(0, until_next - 1))) == num_slots
