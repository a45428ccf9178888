"""One sequence: its numbers and their invariant; and the live request that its sequences belong to.

    token_ids   |<--------- prompt --------->|<-- resumed -->|<-- generated here -->|
    computed    |<------------- KV is in `blocks` ------------->|
    blocks      |  shared full blocks  |  private blocks, the last one maybe partial  |

    0 ≤ num_cached ≤ num_computed ≤ len(token_ids),  num_computed ≤ len(blocks) * block_size

A running sequence owns room for all of its tokens but perhaps the newest: only a new token ever asks for a block.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum

from weir.kvstore.v1.block_hash import block_hash
from weir_executor.guided.guide import GuideState
from weir_executor.request import GenerationRequest, Pooling, Sampling
from weir_executor.step_output import FinishReason


class Status(Enum):
    WAITING = "waiting"  # holds no blocks; a preempted sequence is waiting again
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """One output of a request. Only the scheduler changes it."""

    live: LiveRequest = field(repr=False)
    output_index: int
    token_ids: list[int] = field(repr=False)  # a prompt belongs in no log
    block_hashes: list[bytes] = field(repr=False)
    guide: GuideState | None = field(default=None, repr=False)  # has taken the generated tokens
    status: Status = Status.WAITING
    num_computed: int = 0
    num_cached: int = 0  # of the computed, those not computed by this sequence since it was last admitted
    num_stored: int = 0  # leading full blocks already offered to the prefix index
    blocks: list[int] = field(default_factory=list)
    deferred_steps: int = 0  # steps it stood back for a block that another sequence was computing
    preempted: bool = False  # it has run, and waits to come back
    num_given: int = 0  # tokens it began with: the prompt and what was resumed
    num_reached: int = 0  # the most tokens it ever had computed: what comes after is new ground
    pooled: object = field(default=None, repr=False)  # the worker's own: what it pooled of the computed tokens

    @property
    def priority(self) -> int:
        return self.live.request.priority

    @property
    def tenant(self) -> str:
        return self.live.request.tenant

    @property
    def arrival(self) -> tuple[int, int, int]:
        """The request's place, then first come, first served; of one request, the lower output first. Unique."""
        return (self.live.request.place, self.live.arrival, self.output_index)

    @property
    def num_prompt(self) -> int:
        return len(self.live.request.token_ids)

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, resumed ones included."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_outstanding(self) -> int:
        """Tokens still to compute, plus still to generate at most."""
        return self.num_uncomputed + self.live.most_tokens - self.num_generated

    def most_known_blocks(self, block_size: int) -> int:
        """Leading full blocks that it may find computed: one token at least is left, for its logits give the next."""
        return (len(self.token_ids) - 1) // block_size

    def forbidden_token_ids(self, ahead: int = 0) -> frozenset[int]:
        """Tokens that may not be drawn next: those that would end the output before `min_tokens`.

        `ahead` counts tokens that are drafted after its own and before the draw.
        """
        wanted = self.live.request.min_tokens
        return self.live.stop_token_ids if self.num_generated + ahead < wanted else frozenset()

    @property
    def sampling(self) -> Sampling:
        return self.live.request.sampling

    @property
    def pooling(self) -> Pooling | None:
        return self.live.request.pooling

    @property
    def stop_token_id(self) -> int | None:
        """The generated token that has ended it."""
        return self.token_ids[-1] if self.num_generated and self.token_ids[-1] in self.live.stop_token_ids else None

    def extend(self, token_ids: Items[int]) -> None:
        """New tokens, none of them beyond its end."""
        self.token_ids += token_ids
        if self.guide is not None:
            for token_id in token_ids:
                allowed = token_id in self.live.stop_token_ids or self.guide.advance(token_id)
                assert allowed, "a token was drawn that the guide does not allow"

    def finish_reason(self) -> FinishReason | None:
        """Why this output is over, if it is: its guide may be complete before there is any token.

        Only generated tokens stop it; a vector has no reason.
        """
        if self.pooling is not None:
            return None
        if self.stop_token_id is not None:
            return FinishReason.STOP
        if self.guide is not None and self.guide.allows_end and not self.guide.allows_text:
            return FinishReason.STOP  # the guide leaves nothing to add
        return FinishReason.LENGTH if self.num_generated >= self.live.request.max_tokens else None

    @property
    def hands_over(self) -> bool:
        """Whether it has drawn its first tokens here, and is for another engine to go on with."""
        return self.live.request.hand_off and len(self.token_ids) > self.num_given and self.finish_reason() is None

    def count_until_end(self, new_token_ids: Items[int]) -> int:
        """How many of these tokens it takes until it is over, or all of them."""
        left = self.live.request.max_tokens - self.num_generated
        stops = (i for i, token_id in enumerate(new_token_ids, 1) if token_id in self.live.stop_token_ids)
        return min(left, next(stops, len(new_token_ids)), self._count_until_guide_ends(new_token_ids))

    def _count_until_guide_ends(self, new_token_ids: Items[int]) -> int:
        if self.guide is None or len(new_token_ids) < 2:
            return len(new_token_ids)
        taken = 0
        while taken < len(new_token_ids) and self.guide.allows_text and self.guide.advance(new_token_ids[taken]):
            taken += 1
        has_ended = not self.guide.allows_text
        self.guide.rollback(taken)
        return taken if has_ended else len(new_token_ids)

    def hash_full_blocks(self, block_size: int) -> None:
        """Extend `block_hashes` to all full blocks of `token_ids`, for a request that shares its blocks."""
        if not self.live.shares_blocks:
            return
        for index in range(len(self.block_hashes), len(self.token_ids) // block_size):
            block = self.token_ids[index * block_size : (index + 1) * block_size]
            self.block_hashes.append(block_hash(self.parent_hash(index), block))

    def parent_hash(self, index: int) -> bytes:
        """The hash that block number `index` hangs from."""
        return self.block_hashes[index - 1] if index else self.live.request.cache_scope

    def check_integrity(self, block_size: int) -> None:
        assert 0 <= self.num_cached <= self.num_computed <= len(self.token_ids), self
        assert self.num_computed <= len(self.blocks) * block_size, self
        assert len(self.block_hashes) <= len(self.token_ids) // block_size, self
        assert self.num_stored * block_size <= self.num_computed, self
        if self.status is Status.RUNNING:
            assert len(self.token_ids) - 1 <= len(self.blocks) * block_size < len(self.token_ids) + block_size, self
            assert self.num_uncomputed > 0, self
        else:
            assert not self.blocks, self
            assert not self.num_computed, self


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request between `submit` and its `RequestEnd`, with what that last word will say."""

    request: GenerationRequest = field(repr=False)
    arrival: int  # counts submits: first come, first served
    stop_token_ids: frozenset[int]  # the request's own, and EOS unless ignored
    shares_blocks: bool
    submitted_at: float
    stored_blocks: list[bytes | memoryview] = field(default_factory=list, repr=False)
    first_stored_block: int = 0
    guides: list[GuideState] = field(default_factory=list, repr=False)  # of each output, unless it follows none
    sequences: list[Sequence] = field(default_factory=list)  # those still live
    started: bool = False  # a sequence of it has run
    scheduled_at: float | None = None
    first_token_at: float | None = None
    cached_prompt_tokens: int = 0
    loaded_prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    preemptions: int = 0
    embedding: Items[float] = ()
    held_blocks: int | None = None  # of a request that an output of was handed over

    @property
    def key(self) -> int:
        return self.request.key

    @property
    def most_tokens(self) -> int:
        """That an output comes to here, resumed ones included: one that is handed off stops at its first."""
        request = self.request
        return min(request.max_tokens, 1 + _most_resumed(request)) if request.hand_off else request.max_tokens


def _most_resumed(request: GenerationRequest) -> int:
    return max(map(len, request.resumed.values()), default=0)


def new_sequences(live: LiveRequest, block_size: int) -> list[Sequence]:
    """The `n` sequences of a request, resumed tokens appended and hashes known."""
    request = live.request
    sequences = []
    for output_index in range(request.n):
        resumed: Items[int] = request.resumed.get(output_index, ())
        token_ids = [*request.token_ids, *resumed]
        block_hashes = list(request.block_hashes) if live.shares_blocks else []
        guide = live.guides[output_index] if live.guides else None
        sequence = Sequence(live, output_index, token_ids, block_hashes, guide, num_given=len(token_ids))
        sequence.hash_full_blocks(block_size)
        sequences.append(sequence)
    return sequences
