"""The messages that carry chunks, read and written without copying the chunk through protobuf.

A `BlockChunk` is what PutBlocksRequest.chunk and GetBlocksResponse have in common. Its bytes on the wire are those of
the generated messages, so either end may be a plain protobuf one. Serialising joins the header and the chunk once;
parsing leaves the chunk where it is, as a view. Whatever is not a chunk, or is not written as protobuf's own
serialisers write it (fields in order, each at most once), is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeAlias

from weir.kvstore.v1 import kvstore_pb2 as pb

Bytes: TypeAlias = bytes | bytearray | memoryview

# Of a payload in one message, as the contract says.
MAX_CHUNK_BYTES = 2 * 1024 * 1024

_VARINT, _FIXED64, _LENGTH = 0, 1, 2  # wire types
_CHECKSUM = Struct("<Q")
_MAX_VARINT_BYTES = 10
_PUT_CHUNK = bytes([2 << 3 | _LENGTH])  # PutBlocksRequest.chunk


@dataclass(slots=True)
class BlockChunk:
    """The next bytes of a block; sizes in bytes. `chunk` is lent: whoever keeps it longer than its owner copies it."""

    block_hash: bytes
    parent_block_hash: bytes  # only when it is put
    payload_bytes: int  # of the whole payload
    offset: int
    chunk: Bytes
    checksum: int  # XXH3-64 of the whole payload


def chunks(payload: Bytes, block_hash: bytes, parent_block_hash: bytes = b"", *, checksum: int) -> Iterator[BlockChunk]:
    """A whole payload, in pieces that fit a message."""
    view = memoryview(payload)
    for offset in range(0, len(view), MAX_CHUNK_BYTES):
        chunk = view[offset : offset + MAX_CHUNK_BYTES]
        yield BlockChunk(block_hash, parent_block_hash, len(view), offset, chunk, checksum)


# Field numbers of (block_hash, parent_block_hash, payload_bytes, offset, chunk, checksum); 0: there is none.
_PUT_FIELDS = (1, 2, 3, 4, 5, 6)
_GET_FIELDS = (1, 0, 2, 3, 4, 5)
_WIRE_TYPES = (_LENGTH, _LENGTH, _VARINT, _VARINT, _LENGTH, _FIXED64)
_CHUNK_PLACE = 4


def _places(numbers: tuple[int, ...]) -> dict[int, int]:
    """Tag → place among the fields."""
    return {number << 3 | _WIRE_TYPES[place]: place for place, number in enumerate(numbers) if number}


_PUT_PLACES, _GET_PLACES = _places(_PUT_FIELDS), _places(_GET_FIELDS)


def serialize_get(message: BlockChunk | pb.GetBlocksResponse) -> bytes:
    """As GetBlocksResponse. Copies the chunk once, so that what it was lent from may change afterwards."""
    if not isinstance(message, BlockChunk):
        return message.SerializeToString()
    return b"".join(_encode(message, _GET_FIELDS))


def parse_get(data: bytes) -> BlockChunk | pb.GetBlocksResponse:
    """A chunk, or the whole message when it carries none. Raises protobuf's DecodeError."""
    return _decode(data, 0, _GET_PLACES) or _get_by_protobuf(data)


def serialize_put(message: BlockChunk | pb.PutBlocksRequest) -> bytes:
    """As PutBlocksRequest."""
    if not isinstance(message, BlockChunk):
        return message.SerializeToString()
    parts = _encode(message, _PUT_FIELDS)
    return b"".join([_PUT_CHUNK, _varint(sum(map(len, parts))), *parts])


def parse_put(data: bytes) -> BlockChunk | pb.PutBlocksRequest:
    """A chunk, or the whole message when it is a beginning or a commit. Raises protobuf's DecodeError."""
    if data[:1] == _PUT_CHUNK:
        length, start = _read_varint(data, 1)
        if start + length == len(data) and (chunk := _decode(data, start, _PUT_PLACES)) is not None:
            return chunk
    return _put_by_protobuf(data)


def _encode(chunk: BlockChunk, numbers: tuple[int, ...]) -> list[Bytes]:
    """Fields in order; what is empty or zero is left out, as proto3 does."""
    parts: list[Bytes] = []
    values = (
        chunk.block_hash,
        chunk.parent_block_hash,
        chunk.payload_bytes,
        chunk.offset,
        chunk.chunk,
        chunk.checksum,
    )
    for number, wire_type, value in zip(numbers, _WIRE_TYPES, values, strict=True):
        empty = not value if isinstance(value, int) else not len(value)
        if empty or not number:
            continue
        parts.append(bytes([number << 3 | wire_type]))
        if not isinstance(value, int):
            parts += [_varint(len(value)), value]
        else:
            parts.append(_CHECKSUM.pack(value) if wire_type == _FIXED64 else _varint(value))
    return parts


def _decode(data: bytes, at: int, places: dict[int, int]) -> BlockChunk | None:
    """The chunk that begins here and ends with the data; None where it is for protobuf to say what this is."""
    values: list[Any] = [b"", b"", 0, 0, b"", 0]
    last, end = 0, len(data)
    while at < end:
        tag = data[at]
        place = places.get(tag)
        if place is None or tag <= last:
            return None
        last, wire_type = tag, _WIRE_TYPES[place]
        if wire_type == _FIXED64:
            if at + 9 > end:
                return None
            (values[place],) = _CHECKSUM.unpack_from(data, at + 1)
            at += 9
            continue
        value, at = _read_varint(data, at + 1)
        if value < 0 or (wire_type == _LENGTH and at + value > end):
            return None
        if wire_type == _LENGTH:
            # A view where there is much to copy; names are short, and are looked up.
            values[place] = memoryview(data)[at : at + value] if place == _CHUNK_PLACE else data[at : at + value]
            at += value
        else:
            values[place] = value
    return BlockChunk(*values) if len(values[_CHUNK_PLACE]) else None


def _varint(value: int) -> bytes:
    assert 0 <= value < 1 << 64, value
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value, and where the next field begins; -1 where this is no number below 2⁶⁴."""
    value = shift = 0
    for place in range(at, min(at + _MAX_VARINT_BYTES, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value if value < 1 << 64 else -1), place + 1
        shift += 7
    return -1, at


def _get_by_protobuf(data: bytes) -> BlockChunk | pb.GetBlocksResponse:
    message = pb.GetBlocksResponse.FromString(data)
    if message.HasField("placed"):
        return message
    return BlockChunk(message.block_hash, b"", message.payload_bytes, message.offset, message.chunk, message.checksum)


def _put_by_protobuf(data: bytes) -> BlockChunk | pb.PutBlocksRequest:
    message = pb.PutBlocksRequest.FromString(data)
    if message.WhichOneof("part") != "chunk":
        return message
    found = message.chunk
    return BlockChunk(
        found.block_hash,
        found.parent_block_hash,
        found.payload_bytes,
        found.offset,
        found.chunk,
        found.checksum,
    )
