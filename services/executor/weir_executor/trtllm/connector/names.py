"""Names of staged prefixes, and which of them serves a prompt best. Pure.

A chained hash names all tokens before it, so a prefix is named by the hash of its last block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from weir.kvstore.v1.block_hash import DIGEST_BYTES

_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class StagedName:
    """Blocks `first_block` to `end_block` (which is not among them) of a prompt. `number` makes it unique."""

    last_hash: bytes
    first_block: int
    end_block: int
    number: int

    def __str__(self) -> str:
        return f"{self.last_hash.hex()}-{self.first_block}-{self.end_block}-{self.number}"


def parse(name: str) -> StagedName | None:
    """None for what is no staged prefix, such as one that is being written."""
    parts = name.split("-")
    if len(parts) != _PARTS or len(parts[0]) != 2 * DIGEST_BYTES:
        return None
    try:
        return StagedName(bytes.fromhex(parts[0]), *map(int, parts[1:]))
    except ValueError:
        return None


def furthest(
    staged: Iterable[StagedName], hashes: Sequence[bytes], *, computed_blocks: int, max_blocks: int
) -> StagedName | None:
    """The one that reaches furthest into the prompt, of those that go on from what is computed already.

    `hashes`: of the prompt's full blocks. `max_blocks`: no more than these may be given; one must reach beyond
    `computed_blocks`, and may reach beyond `max_blocks`.
    """
    best: StagedName | None = None
    for each in staged:
        if not each.first_block <= computed_blocks < min(each.end_block, max_blocks):
            continue
        if each.end_block > len(hashes) or hashes[each.end_block - 1] != each.last_hash:
            continue
        if best is None or each.end_block > best.end_block:
            best = each
    return best
