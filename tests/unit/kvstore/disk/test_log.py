from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.tiers.disk.log import (
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    Kind,
    LiveSlots,
    LogDamagedError,
    encode_file_header,
    encode_record,
    replay,
)

_Change = tuple[Kind, int, int, int]
_CHANGES = st.lists(
    st.tuples(st.sampled_from(Kind), st.sampled_from([4096, 65536]), st.integers(0, 5), st.integers(1, 2**40)),
    max_size=30,
)
_EPOCH = 7


def encoded(changes: Sequence[_Change], epoch: int = _EPOCH, zeros: int = 2 * RECORD_BYTES) -> bytes:
    records = b"".join(encode_record(*change, epoch) for change in changes)
    return encode_file_header(epoch, 1) + records + bytes(zeros)


def replayed(file: bytes, chunk_records: int = 4) -> dict[tuple[int, int], int]:
    chunk_bytes = chunk_records * RECORD_BYTES
    body = file[FILE_HEADER_BYTES:]
    chunks = (body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes))
    return {(size, slot): generation for size, slot, generation in replay(file[:FILE_HEADER_BYTES], chunks).live}


def model(changes: Sequence[_Change]) -> dict[tuple[int, int], int]:
    live: dict[tuple[int, int], int] = {}
    for kind, slot_bytes, slot, generation in changes:
        if kind is Kind.COMMIT:
            live[slot_bytes, slot] = generation
        elif live.get((slot_bytes, slot)) == generation:
            del live[slot_bytes, slot]
    return live


@given(_CHANGES, st.integers(1, 40))
def test_what_was_committed_and_not_freed_is_live(changes: list[_Change], chunk_records: int) -> None:
    file = encoded(changes)
    assert replayed(file, chunk_records) == model(changes)
    left = replay(file[:FILE_HEADER_BYTES], [file[FILE_HEADER_BYTES:]])
    assert left.epoch == _EPOCH
    assert left.next_generation == max([1, *(generation + 1 for *_, generation in changes)])
    assert len(left.live) == len(model(changes))


@given(_CHANGES, st.data())
def test_a_file_that_is_cut_off_counts_for_nothing(changes: list[_Change], data: st.DataObject) -> None:
    file = encoded(changes, zeros=RECORD_BYTES)
    with pytest.raises(LogDamagedError):
        replayed(file[: data.draw(st.integers(0, len(file) - 1))])


@given(_CHANGES, st.data(), st.integers(1, 255))
def test_one_bad_byte_and_it_counts_for_nothing(changes: list[_Change], data: st.DataObject, change: int) -> None:
    file = bytearray(encoded(changes))
    file[data.draw(st.integers(0, len(file) - 1))] ^= change
    with pytest.raises(LogDamagedError):
        replayed(bytes(file))


@given(_CHANGES.filter(bool))
def test_records_of_another_epoch_are_damage(changes: list[_Change]) -> None:
    with pytest.raises(LogDamagedError, match="does not match its checksum"):
        replayed(encode_file_header(_EPOCH + 1, 1) + encoded(changes)[FILE_HEADER_BYTES:])


@given(_CHANGES)
def test_live_slots_count_what_they_hold(changes: list[_Change]) -> None:
    live = LiveSlots()
    for change in changes:
        live.apply(*change)
    assert {(size, slot): generation for size, slot, generation in live} == model(changes)
    assert len(live) == len(model(changes))
    assert live.generation(4096, 10**6) == live.generation(12288, 0) == 0
