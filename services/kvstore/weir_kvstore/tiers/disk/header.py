"""A slot's header: what lies in it, said by the slot itself. Pure.

    magic 4 │ version 2 │ lengths 4 │ generation 8 │ size 8 │ checksum 8 │ seconds 8 │ stored at 8
    namespace, block hash, parent, tenant, one after another │ zeros │ XXH3-64 of all before 8

The checksum is seeded with the slot's place, so that a header counts where it was written and nowhere else.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from weir_kvstore.record import Address, Record
from weir_kvstore.tiers.disk.geometry import HEADER_BYTES

VERSION: Final = 1
EMPTY: Final = bytes(HEADER_BYTES)  # of a slot with nothing in it
_MAGIC: Final = b"WKVS"
_FIXED: Final = Struct("<4sH4BQQQdd")
_CHECK: Final = Struct("<Q")
_NAMES_BYTES: Final = HEADER_BYTES - _FIXED.size - _CHECK.size
_WHOLE: Final = Struct(f"{_FIXED.format}{_NAMES_BYTES}sQ")


class SlotHeader(NamedTuple):
    generation: int  # of this commit; no two commits in a directory have the same
    record: Record
    stored_at: float  # seconds since the Unix epoch


def encode(header: SlotHeader, slot_bytes: int, slot: int) -> bytes:
    """`HEADER_BYTES` long. Raises OSError (ENAMETOOLONG) for a record that does not fit, by its tenant."""
    record = header.record
    names = (record.address.namespace, record.address.block_hash, record.parent_block_hash, record.tenant.encode())
    packed = b"".join(names)
    if len(packed) > _NAMES_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"hashes and tenant take {len(packed)} bytes; a slot has {_NAMES_BYTES}")
    fixed = _FIXED.pack(
        _MAGIC,
        VERSION,
        *map(len, names),
        header.generation,
        record.size_bytes,
        record.checksum,
        record.prefill_seconds,
        header.stored_at,
    )
    body = (fixed + packed).ljust(HEADER_BYTES - _CHECK.size, b"\0")
    return body + _CHECK.pack(xxh3_64_intdigest(body, _seed(slot_bytes, slot)))


def decode(raw: bytes, slot_bytes: int, slot: int) -> SlotHeader | None:
    """The header of this slot, or None when it is empty, torn, damaged, another slot's, or says what cannot be."""
    (
        magic,
        version,
        namespace,
        block_hash,
        parent,
        tenant,
        generation,
        size,
        checksum,
        seconds,
        stored_at,
        names,
        check,
    ) = _WHOLE.unpack(raw)
    if magic != _MAGIC or check != xxh3_64_intdigest(raw[: -_CHECK.size], _seed(slot_bytes, slot)):
        return None
    if version != VERSION or not 0 < size <= slot_bytes:
        return None
    parent_at = namespace + block_hash
    tenant_at = parent_at + parent
    address = Address(names[:namespace], names[namespace:parent_at])
    who = names[tenant_at : tenant_at + tenant].decode() if tenant else ""
    return SlotHeader(generation, Record(address, names[parent_at:tenant_at], size, checksum, who, seconds), stored_at)


def _seed(slot_bytes: int, slot: int) -> int:
    return slot_bytes << 32 | slot
