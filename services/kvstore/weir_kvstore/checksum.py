"""XXH3-64, by which a payload proves that it is what was put."""

from __future__ import annotations

import asyncio
from typing import Final

from xxhash import xxh3_64, xxh3_64_intdigest

from weir_kvstore.record import Bytes

# A hop to a thread costs about what hashing this much does, some 0.1 ms. xxhash lets go of the GIL above 64 KiB, so the
# event loop does run while a thread hashes.
_INLINE_BYTES: Final = 1024 * 1024


class RunningChecksum:
    """The checksum of a payload that arrives in pieces."""

    def __init__(self) -> None:
        self._hasher = xxh3_64()

    def update(self, piece: Bytes) -> None:
        self._hasher.update(piece)

    @property
    def value(self) -> int:
        """64 bits, unsigned."""
        return self._hasher.intdigest()


def checksum(payload: Bytes) -> int:
    """64 bits, unsigned."""
    return xxh3_64_intdigest(payload)


async def matches(payload: Bytes, expected: int) -> bool:
    """Whether the payload has this checksum; a big one is hashed on a thread."""
    if len(payload) <= _INLINE_BYTES:
        return checksum(payload) == expected
    return await asyncio.to_thread(checksum, payload) == expected
