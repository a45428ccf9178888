"""The codec and protobuf are one: what either writes, the other reads, and both refuse the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import (
    MAX_CHUNK_BYTES,
    BlockChunk,
    Bytes,
    chunks,
    parse_get,
    parse_put,
    serialize_get,
    serialize_put,
)

U64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
NAMES = st.binary(max_size=40)
CHUNKS = st.builds(
    BlockChunk,
    block_hash=NAMES,
    parent_block_hash=NAMES,
    payload_bytes=U64,
    offset=U64,
    chunk=st.binary(max_size=300),
    checksum=U64,
)
VIEWS: list[Callable[[bytes], Bytes]] = [bytes, bytearray, memoryview]


def as_response(chunk: BlockChunk) -> pb.GetBlocksResponse:
    return pb.GetBlocksResponse(
        block_hash=chunk.block_hash,
        payload_bytes=chunk.payload_bytes,
        offset=chunk.offset,
        chunk=bytes(chunk.chunk),
        checksum=chunk.checksum,
    )


def as_request(chunk: BlockChunk) -> pb.PutBlocksRequest:
    return pb.PutBlocksRequest(
        chunk=pb.PutChunk(
            block_hash=chunk.block_hash,
            parent_block_hash=chunk.parent_block_hash,
            payload_bytes=chunk.payload_bytes,
            offset=chunk.offset,
            chunk=bytes(chunk.chunk),
            checksum=chunk.checksum,
        )
    )


@given(chunk=CHUNKS, view=st.sampled_from(VIEWS))
def test_a_chunk_that_is_got(chunk: BlockChunk, view: Callable[[bytes], Bytes]) -> None:
    chunk.parent_block_hash, chunk.chunk = b"", view(bytes(chunk.chunk))
    data = as_response(chunk).SerializeToString()
    assert serialize_get(chunk) == data
    assert parse_get(data) == chunk


@given(chunk=CHUNKS, view=st.sampled_from(VIEWS))
def test_a_chunk_that_is_put(chunk: BlockChunk, view: Callable[[bytes], Bytes]) -> None:
    chunk.chunk = view(bytes(chunk.chunk))
    data = as_request(chunk).SerializeToString()
    assert serialize_put(chunk) == data
    assert parse_put(data) == chunk


def test_chunks_of_full_length_are_views_of_what_came() -> None:
    payload = bytes(range(256)) * 8192
    chunk = BlockChunk(b"h" * 16, b"p" * 16, len(payload), 0, memoryview(payload), 2**64 - 1)
    for data, parse in ((serialize_put(chunk), parse_put), (serialize_get(chunk), parse_get)):
        parsed = parse(data)
        assert isinstance(parsed, BlockChunk)
        assert isinstance(parsed.chunk, memoryview)
        assert parsed.chunk.obj is data
        assert parsed.chunk == payload


def test_what_carries_no_chunk_is_the_message_itself() -> None:
    placed = pb.GetBlocksResponse(placed=pb.PlacedBlocks(block_hashes=b"h" * 16, offsets=[5]))
    assert parse_get(serialize_get(placed)) == placed
    for request in (
        pb.PutBlocksRequest(begin=pb.PutBegin(namespace=b"n" * 16)),
        pb.PutBlocksRequest(commit=pb.PutCommit()),
        pb.PutBlocksRequest(),
    ):
        assert parse_put(serialize_put(request)) == request


def _told(parse: Callable[[bytes], object], data: bytes) -> object:
    try:
        return parse(data)
    except DecodeError:
        return "refused"


def _get_by_protobuf(data: bytes) -> object:
    message = pb.GetBlocksResponse.FromString(data)
    if message.HasField("placed"):
        return message
    return BlockChunk(message.block_hash, b"", message.payload_bytes, message.offset, message.chunk, message.checksum)


def _put_by_protobuf(data: bytes) -> object:
    message = pb.PutBlocksRequest.FromString(data)
    if message.WhichOneof("part") != "chunk":
        return message
    found = message.chunk
    return BlockChunk(
        found.block_hash, found.parent_block_hash, found.payload_bytes, found.offset, found.chunk, found.checksum
    )


def _same(ours: object, theirs: object) -> None:
    assert type(ours) is type(theirs)
    assert ours == theirs


@given(chunk=CHUNKS, data=st.data())
def test_what_others_write_or_spoil_means_what_protobuf_says(chunk: BlockChunk, data: st.DataObject) -> None:
    """Cut, spoilt and doubled messages, fields in another order, fields that are not ours."""
    whole = data.draw(st.sampled_from([as_response(chunk), as_request(chunk)])).SerializeToString()
    other = data.draw(st.one_of(st.binary(max_size=60), CHUNKS.map(lambda c: as_response(c).SerializeToString())))
    cut = data.draw(st.integers(0, len(whole)))
    spoilt = bytearray(whole or b"\x00")
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    for bad in (whole[:cut], whole + other, other + whole, whole[cut:] + whole[:cut], bytes(spoilt), other):
        _same(_told(parse_get, bad), _told(_get_by_protobuf, bad))
        _same(_told(parse_put, bad), _told(_put_by_protobuf, bad))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**63, 2**64 - 1])
def test_numbers_at_their_edges(value: int) -> None:
    chunk = BlockChunk(b"", b"", value, value, b"x", value)
    assert parse_get(as_response(chunk).SerializeToString()) == chunk
    assert parse_put(as_request(chunk).SerializeToString()) == chunk


def test_a_number_that_is_longer_than_need_be_is_read_as_protobuf_reads_it() -> None:
    for varint in (b"\x81\x00", b"\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\xff" * 9 + b"\x7f", b"\xff" * 11):
        data = b"\x10" + varint + b"\x22\x01x"
        _same(_told(parse_get, data), _told(_get_by_protobuf, data))


def test_a_payload_is_cut_into_pieces_that_fit_a_message() -> None:
    payload = bytes(range(256)) * (MAX_CHUNK_BYTES // 256) + b"end"
    first, last = chunks(payload, b"h" * 16, b"p" * 16, checksum=7)
    assert (first.offset, len(first.chunk), last.offset, bytes(last.chunk)) == (
        0,
        MAX_CHUNK_BYTES,
        MAX_CHUNK_BYTES,
        b"end",
    )
    assert bytes(first.chunk) + bytes(last.chunk) == payload
    headers = {(each.block_hash, each.parent_block_hash, each.payload_bytes, each.checksum) for each in (first, last)}
    assert headers == {(b"h" * 16, b"p" * 16, len(payload), 7)}
