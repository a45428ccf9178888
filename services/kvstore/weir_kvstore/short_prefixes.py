"""Which blocks of a put belong to prefixes that are too short to be worth keeping. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weir_kvstore.block import Block
from weir_kvstore.record import Address


def too_short(blocks: Sequence[Block], min_blocks: int, is_held: Callable[[Address], bool]) -> list[Block]:
    """Those whose chain, as far as it is known, has fewer blocks than this, whichever way it goes on from them.

    A chain that continues what is held is long enough: its beginning has passed already.
    """
    if min_blocks <= 1:
        return []
    arriving = {block.address: block for block in blocks}
    lengths: dict[Address, int] = {}  # of the longest chain from each beginning
    beginnings: dict[Address, Address] = {}
    for block in blocks:
        beginning, depth = _beginning(block, arriving)
        beginnings[block.address] = beginning
        lengths[beginning] = max(depth, lengths.get(beginning, 0))
    short = {one for one, length in lengths.items() if length < min_blocks and not is_held(_parent(arriving[one]))}
    return [block for block in blocks if beginnings[block.address] in short]


def _beginning(block: Block, arriving: dict[Address, Block]) -> tuple[Address, int]:
    """The first of these blocks in this one's chain, and how many there are from there to here."""
    depth = 1
    while (parent := arriving.get(_parent(block))) is not None and depth < len(arriving):  # a chain may bite its tail
        block, depth = parent, depth + 1
    return block.address, depth


def _parent(block: Block) -> Address:
    return Address(block.address.namespace, block.parent_block_hash)
