"""The value of a block says what it is; whatever else lies under its key is not taken for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.checksum import checksum
from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.redis.layout import Keys, decode, encode, member

ADDRESS = Address(b"n" * 16, b"h" * 16)


def record_of(payload: bytes, tenant: str = "acme", parent: bytes = b"p" * 16) -> Record:
    return Record(ADDRESS, parent, len(payload), checksum(payload), tenant, 0.25)


@given(
    st.binary(min_size=1, max_size=200),
    st.text(max_size=30).filter(lambda text: text.isprintable()),
    st.sampled_from([b"", b"p" * 16]),
)
def test_a_block_comes_back_as_it_was(payload: bytes, tenant: str, parent: bytes) -> None:
    record = record_of(payload, tenant, parent)
    got = decode(encode(record, memoryview(payload)), ADDRESS)
    assert got is not None
    assert (got[0], bytes(got[1])) == (record, payload)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(place: int, bit: int) -> None:
    record = record_of(b"payload" * 9)
    value = bytearray(encode(record, b"payload" * 9))
    value[place % len(value)] ^= 1 << bit
    got = decode(bytes(value), ADDRESS)
    assert got is None or checksum(got[1]) != got[0].checksum


@given(st.integers(0, 200), st.binary(max_size=20))
def test_a_value_of_another_length_is_no_block(kept: int, more: bytes) -> None:
    value = encode(record_of(b"payload" * 9), b"payload" * 9)
    spoilt = value[:kept] + more
    assert len(spoilt) == len(value) or decode(spoilt, ADDRESS) is None


def test_another_block_under_the_key_is_not_taken_for_it() -> None:
    value = encode(record_of(b"payload"), b"payload")
    assert decode(value, Address(b"m" * 16, ADDRESS.block_hash)) is None
    assert decode(value, Address(ADDRESS.namespace, b"g" * 16)) is None


def test_all_keys_of_a_store_are_in_one_slot_of_a_cluster() -> None:
    """Redis Cluster hashes what stands between the first braces."""
    keys = Keys("main")
    for key in (*keys.books, keys.block(ADDRESS), keys.staged("t"), keys.blocks_of(b"n" * 16)):
        assert key.startswith("weir-kv:{main}:")


def test_members_are_what_scan_finds() -> None:
    keys = Keys("main")
    assert keys.members([keys.block(ADDRESS).encode()]) == [member(ADDRESS)]
    assert keys.members([keys.blocks_of().encode() + b"\xff"]) == ["*\N{REPLACEMENT CHARACTER}"]
