from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.disk.geometry import HEADER_BYTES
from weir_kvstore.tiers.disk.header import EMPTY, SlotHeader, decode, encode

_HASH = st.binary(min_size=16, max_size=16)
_RECORDS = st.builds(
    Record,
    st.builds(Address, _HASH, _HASH),
    _HASH | st.just(b""),
    st.integers(1, 8192),
    st.integers(0, 2**64 - 1),
    st.text(max_size=128).filter(lambda text: len(text.encode("utf-8", "surrogatepass")) <= 128 and text.isprintable()),
    st.floats(0, 1e6),
)
_HEADERS = st.builds(SlotHeader, st.integers(1, 2**64 - 1), _RECORDS, st.floats(0, 1e10))


@given(_HEADERS, st.integers(0, 2**32 - 1))
def test_a_header_says_all_that_is_known_of_a_block(header: SlotHeader, slot: int) -> None:
    raw = encode(header, 8192, slot)
    assert len(raw) == HEADER_BYTES
    assert decode(raw, 8192, slot) == header


@given(_HEADERS, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_it_may_change(header: SlotHeader, place: int, change: int) -> None:
    raw = bytearray(encode(header, 8192, 3))
    raw[place] ^= change
    assert decode(bytes(raw), 8192, 3) is None


@given(_HEADERS, st.integers(0, HEADER_BYTES - 1))
def test_a_torn_one_is_none(header: SlotHeader, length: int) -> None:
    torn = encode(header, 8192, 3)[:length].ljust(HEADER_BYTES, b"\0")
    assert decode(torn, 8192, 3) in (None, header)
    assert decode(torn, 8192, 3) is None or torn == encode(header, 8192, 3)


@given(_HEADERS)
def test_it_counts_where_it_was_written_and_nowhere_else(header: SlotHeader) -> None:
    raw = encode(header, 8192, 3)
    assert decode(raw, 8192, 4) is None
    assert decode(raw, 12288, 3) is None
    assert decode(EMPTY, 8192, 3) is None


def test_a_tenant_that_does_not_fit_is_refused() -> None:
    record = Record(Address(b"n" * 16, b"h" * 16), b"p" * 16, 1, 2, "t" * 151)
    with pytest.raises(OSError, match="199 bytes; a slot has 198"):
        encode(SlotHeader(1, record, 0.0), 4096, 0)
