"""What a shared store looks like from outside: the names of its keys, and the value of a block. Pure.

Every key carries the store's name in braces, which Redis Cluster hashes instead of the whole key: all keys of one store
are in one slot, so that a script may touch them together. A cluster spreads several stores over its nodes, not one.

    weir-kv:{main}:block:<namespace>:<block_hash>    a block: header and payload in one value, so never half of it
    weir-kv:{main}:staged:<token>                    the same before it is committed; lapses by itself
    weir-kv:{main}:books, :tally, :order, :order:<tenant>    see books.lua
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from weir_kvstore.bounds import MAX_PAYLOAD_BYTES, MAX_TENANT_BYTES
from weir_kvstore.record import Address, Bytes, Record

MAGIC: Final = b"WKV1"
# Magic, length of the parent's hash, of the tenant; namespace, hash, parent; payload's size and checksum; seconds.
_FIXED: Final = Struct("<4sHH16s16s16sQQd")
_CHECKSUM: Final = Struct("<Q")
_HASH_BYTES: Final = 16
# No block's is longer.
MAX_VALUE_BYTES: Final = _FIXED.size + MAX_TENANT_BYTES + _CHECKSUM.size + MAX_PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class Keys:
    """The names that the store called `name` uses."""

    name: str

    @property
    def prefix(self) -> str:
        return f"weir-kv:{{{self.name}}}:"

    @property
    def books(self) -> tuple[str, str, str]:
        """In the order in which the script wants them."""
        return f"{self.prefix}books", f"{self.prefix}tally", f"{self.prefix}order"

    def block(self, address: Address) -> str:
        return f"{self.prefix}block:{member(address)}"

    def staged(self, token: str) -> str:
        return f"{self.prefix}staged:{token}"

    def blocks_of(self, namespace: bytes | None = None) -> str:
        """A pattern for SCAN; hexadecimal, because any byte of a hash may mean something in a pattern."""
        return f"{self.prefix}block:{'' if namespace is None else namespace.hex() + ':'}*"

    def members(self, keys: Iterable[bytes | str]) -> list[str]:
        """Of block keys, as SCAN finds them."""
        start = len(self.prefix) + len("block:")
        return [text(key)[start:] for key in keys]


def text(name: bytes | str) -> str:
    """A name as Redis gives it back; one that is not ours may hold anything."""
    return name if isinstance(name, str) else name.decode(errors="replace")


def member(address: Address) -> str:
    """How the books call a block."""
    return f"{address.namespace.hex()}:{address.block_hash.hex()}"


def encode(record: Record, payload: Bytes) -> bytes:
    """A block's value. Copies the payload."""
    return b"".join((_header(record), payload))


def decode(value: Bytes, address: Address) -> tuple[Record, memoryview] | None:
    """The block of this address, its payload not verified yet; None for anything that is not wholly that."""
    if len(value) < _FIXED.size:
        return None
    magic, parent_len, tenant_len, namespace, block_hash, parent, size, checksum, seconds = _FIXED.unpack_from(value)
    begin = _FIXED.size + tenant_len + _CHECKSUM.size
    if magic != MAGIC or parent_len not in (0, _HASH_BYTES) or len(value) != begin + size or not size:
        return None
    (header_checksum,) = _CHECKSUM.unpack_from(value, begin - _CHECKSUM.size)
    if xxh3_64_intdigest(value[: begin - _CHECKSUM.size]) != header_checksum or (namespace, block_hash) != address:
        return None
    tenant = bytes(value[_FIXED.size : _FIXED.size + tenant_len]).decode(errors="replace")
    record = Record(Address(*address), parent[:parent_len], size, checksum, tenant, seconds)
    return record, memoryview(value)[begin:]


def _header(record: Record) -> bytes:
    tenant = record.tenant.encode()
    fixed = _FIXED.pack(
        MAGIC,
        len(record.parent_block_hash),
        len(tenant),
        *record.address,
        record.parent_block_hash,
        record.size_bytes,
        record.checksum,
        record.prefill_seconds,
    )
    return fixed + tenant + _CHECKSUM.pack(xxh3_64_intdigest(fixed + tenant))
