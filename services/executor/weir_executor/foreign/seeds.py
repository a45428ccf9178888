"""Which number an output draws with, when each output is a request of its own to the engine. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

# As many as a signed number of 64 bits holds without its sign: every engine takes them.
_SEED_BITS: Final = 63


def seed_of(seed: int, output_index: int, resumed: int) -> int:
    """Outputs of one request draw differently; one that is resumed draws on, though not what it would have drawn."""
    if not output_index and not resumed:
        return seed % (1 << _SEED_BITS)
    digest = blake2b(f"{seed}/{output_index}/{resumed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << _SEED_BITS)
