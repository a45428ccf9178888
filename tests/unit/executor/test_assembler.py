"""Blocks come together from pieces of any size, and whatever is not as it should be is never a block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.errors import DataCorrupt
from weir_executor.kv_transfer.assembler import BlockAssembler

HASHES = [bytes([i]) * 16 for i in range(3)]
PAYLOADS = [bytes(range(i, i + 48)) for i in range(3)]


def pieces_of(i: int, cuts: Sequence[int] = ()) -> Iterator[BlockChunk]:
    edges = sorted({0, len(PAYLOADS[i]), *cuts})
    for start, end in itertools.pairwise(edges):
        yield BlockChunk(
            block_hash=HASHES[i],
            parent_block_hash=b"",
            payload_bytes=len(PAYLOADS[i]),
            offset=start,
            chunk=PAYLOADS[i][start:end],
            checksum=xxh3_64_intdigest(PAYLOADS[i]),
        )


def assembled(pieces: Sequence[BlockChunk]) -> list[bytes]:
    assembler = BlockAssembler(HASHES, 48)
    blocks = [block for piece in pieces if (block := assembler.add(piece)) is not None]
    assert assembler.done == (len(blocks) == len(HASHES))
    return [bytes(block) for block in blocks]


@given(st.lists(st.lists(st.integers(0, 48)), min_size=3, max_size=3))
def test_pieces_of_any_size_come_together(cuts: list[list[int]]) -> None:
    assert assembled([piece for i in range(3) for piece in pieces_of(i, cuts[i])]) == PAYLOADS


@given(st.lists(st.integers(1, 47), min_size=1), st.data())
def test_a_flipped_bit_anywhere_is_no_block(cuts: list[int], data: st.DataObject) -> None:
    pieces = list(pieces_of(0, cuts))
    which = data.draw(st.sampled_from(pieces))
    bit = data.draw(st.integers(0, 8 * len(which.chunk) - 1))
    flipped = bytearray(which.chunk)
    flipped[bit // 8] ^= 1 << bit % 8
    which.chunk = bytes(flipped)
    with pytest.raises(DataCorrupt, match="checksum"):
        assembled(pieces)


@given(st.permutations(list(range(6))))
def test_pieces_in_another_order_are_refused(order: list[int]) -> None:
    pieces = [piece for i in range(3) for piece in pieces_of(i, [20])]
    if order == sorted(order):
        assert assembled(pieces) == PAYLOADS
        return
    with pytest.raises(DataCorrupt):
        assembled([pieces[i] for i in order])


@pytest.mark.parametrize(
    "wrong",
    [{"block_hash": HASHES[1]}, {"payload_bytes": 47}, {"offset": 1}, {"chunk": b""}, {"chunk": bytes(49)}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_piece_that_was_not_asked_for_is_refused(wrong: dict[str, bytes | int]) -> None:
    piece = next(pieces_of(0))
    for name, value in wrong.items():
        setattr(piece, name, value)
    with pytest.raises(DataCorrupt):
        assembled([piece])


def test_nothing_is_taken_after_the_last() -> None:
    pieces = [piece for i in range(3) for piece in pieces_of(i)]
    with pytest.raises(DataCorrupt, match="not next"):
        assembled([*pieces, pieces[-1]])
