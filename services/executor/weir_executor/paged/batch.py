"""One step, as the scheduler decided it: whose tokens, and which blocks. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from weir_executor.paged.sequence import Sequence
from weir_executor.request import PoolingKind


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`count` tokens of one sequence, from index `first`, to be computed in this step.

    The last of them may be drafts: guesses at what comes after the sequence's own tokens.
    """

    sequence: Sequence
    first: int
    count: int
    draft_token_ids: tuple[int, ...] = ()

    @property
    def blocks(self) -> list[int]:
        return self.sequence.blocks

    @property
    def num_own(self) -> int:
        """Of the tokens, those that are the sequence's own."""
        return self.count - len(self.draft_token_ids)

    @property
    def reaches_end(self) -> bool:
        """Whether the sequence's last token is among these."""
        return self.first + self.num_own == len(self.sequence.token_ids)

    @property
    def samples(self) -> bool:
        """Whether the logits of the sequence's last token are to give the next one."""
        return self.reaches_end and self.sequence.pooling is None

    @property
    def num_wanted(self) -> int:
        """The last so many tokens' logits are wanted: each checks the draft after it, or gives a new token."""
        return 1 + len(self.draft_token_ids) if self.samples else 0

    @property
    def adapter(self) -> str:
        return self.sequence.live.request.adapter

    @property
    def num_pooled(self) -> int:
        """The last so many tokens' hidden states are wanted, for the sequence's vector."""
        pooling = self.sequence.pooling
        if pooling is None:
            return 0
        return self.count if pooling.kind is PoolingKind.MEAN else int(self.reaches_end)

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.token_ids[self.first : self.first + self.num_own], *self.draft_token_ids]


@dataclass(frozen=True, slots=True)
class BlockLoad:
    """A stored payload to be written into a block before the step computes anything."""

    block_id: int
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block that this step computed to its end and made findable."""

    block_id: int
    block_hash: bytes
    parent_block_hash: bytes  # empty for a chain's first block
    cache_scope: bytes  # of the request that computed it
    tenant: str = ""  # likewise


@dataclass(slots=True)
class Batch:
    """What one step computes: decodes first, then prefill chunks."""

    scheduled: list[Scheduled] = field(default_factory=list)
    loads: list[BlockLoad] = field(default_factory=list)
    num_tokens: int = 0
    most_tokens: int = 0

    @property
    def num_left(self) -> int:
        """Tokens that may still be added."""
        return max(0, self.most_tokens - self.num_tokens)

    def add(self, sequence: Sequence, count: int) -> None:
        assert 0 < count <= sequence.num_uncomputed, (count, sequence)
        self.scheduled.append(Scheduled(sequence, sequence.num_computed, count))
        self.num_tokens += count

    def add_drafts(self, row: Scheduled, draft_token_ids: tuple[int, ...]) -> None:
        assert row.samples, row
        longer = Scheduled(row.sequence, row.first, row.count + len(draft_token_ids), draft_token_ids)
        self.scheduled[self.scheduled.index(row)] = longer
        self.num_tokens += len(draft_token_ids)
