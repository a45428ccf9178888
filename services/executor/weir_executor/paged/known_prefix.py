"""What of a sequence's tokens is computed already, or is being computed right now by another. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.sequence import Sequence, Status

# A sequence stands back for a block under way at most this long. In practice the wait ends when the block is done or
# its owner gone; the bound makes that certain. At 512 tokens a step it covers a prompt of 128 Ki tokens.
_MAX_DEFERRED_STEPS = 256
_NONE: Final[Mapping[bytes, int]] = MappingProxyType({})


def known_prefix(
    sequence: Sequence, pool: BlockPool, block_size: int, loading: Mapping[bytes, int] = _NONE
) -> list[int]:
    """Full blocks that hold the beginning of its tokens: by hash, or owned by an output of the same prompt.

    `loading` are blocks that this step writes before it computes anything.
    """
    limit = sequence.most_known_blocks(block_size)
    best = pool.match(sequence.block_hashes[:limit])
    while len(best) < limit and len(best) < len(sequence.block_hashes):
        if (block_id := loading.get(sequence.block_hashes[len(best)])) is None:
            break
        best.append(block_id)
    for sibling in _running_siblings(sequence):
        shared = min(limit, min(sibling.num_computed, sibling.num_prompt) // block_size)
        best = sibling.blocks[:shared] if shared > len(best) else best
    return best


def stands_back(sequence: Sequence, num_known: int, running: Iterable[Sequence], block_size: int) -> bool:
    """Whether another sequence computes its next block in this step, so that waiting is the cheaper."""
    if sequence.deferred_steps >= _MAX_DEFERRED_STEPS or num_known >= sequence.most_known_blocks(block_size):
        return False
    end = (num_known + 1) * block_size
    if end <= sequence.num_prompt and any(s.num_computed < end for s in _running_siblings(sequence)):
        return True
    # A hash names its whole prefix, so equal hashes stand at equal places.
    wanted = sequence.block_hashes[num_known] if num_known < len(sequence.block_hashes) else None
    return wanted is not None and any(
        len(s.block_hashes) > num_known and s.block_hashes[num_known] == wanted and s.num_stored <= num_known
        for s in running
    )


def _running_siblings(sequence: Sequence) -> Iterator[Sequence]:
    return (s for s in sequence.live.sequences if s.status is Status.RUNNING)
