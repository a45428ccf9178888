"""All that is known of a block besides its bytes. It travels with them, so that a block describes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

# `memoryview` wherever a slice of something bigger is meant: it is handed on without a copy.
Bytes: TypeAlias = bytes | bytearray | memoryview


class Address(NamedTuple):
    namespace: bytes
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """What a block says of itself, wherever it is kept."""

    address: Address
    parent_block_hash: bytes  # empty at a chain's beginning
    size_bytes: int
    checksum: int  # XXH3-64 of the payload
    tenant: str = ""  # whose quota it is charged to
    prefill_seconds: float = 0.0  # what computing it took; 0: not told
