"""What an engine answers after each step: new tokens, last words on requests, and what became of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class FinishReason(Enum):
    """Why one output of a request ended. The names are those of `weir.inference.v1.FinishReason`."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm, after penalties and temperature) of one emitted token."""

    logprob: float
    top_token_ids: Sequence[int] = ()
    top_logprobs: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one step added to one output. `token_ids` are new tokens only, never the ones before.

    `first_token_index` counts from 0 at the output's first generated token, resumed ones included. An EOS or stop token
    that ended the output is part of `token_ids`; `stop_token_id` names it. An output whose guide leaves nothing to add
    ends with STOP and no such token.
    """

    key: int
    output_index: int
    first_token_index: int
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """The last word on a request: all outputs finished, it was aborted, or it failed (`error`). Its blocks are free.

    But for those of a request that hands off. Each of its outputs ends after its first tokens, with no finish reason
    unless it is over by them. If any is not, `held_blocks` says how many leading full blocks of the prompt stay where
    they are until `Engine.release_held`, or until the engine needs them more. An engine that moves blocks by itself
    says in `handed_state` whatever another of its kind needs to fetch them.
    """

    key: int
    prompt_tokens: int
    cached_prompt_tokens: int  # of the prompt, found in the engine's own blocks
    loaded_prompt_tokens: int  # of the prompt, taken from `stored_prefix`
    completion_tokens: int  # over all outputs, resumed tokens not counted
    queue_seconds: float = 0.0  # submit → first scheduled
    prefill_seconds: float = 0.0  # first scheduled → first token
    decode_seconds: float = 0.0  # first token → end
    preemptions: int = 0
    draft_tokens: int = 0  # guesses that were checked
    accepted_draft_tokens: int = 0  # of them, those that stood: they are among `completion_tokens`
    error: Exception | None = None
    embedding: Sequence[float] = ()  # `embedding_size` values, of a request that pooled and did not fail
    held_blocks: int | None = None  # for another engine to take; None: there is nothing to go on with
    handed_state: bytes = b""  # opaque; empty: the blocks are read out of the pool, by `Engine.read_held`


@dataclass(frozen=True, slots=True)
class FullBlock:
    """A block that became full in this step, copied out for the kvstore."""

    cache_scope: bytes  # of the request that computed it
    block_hash: bytes
    parent_block_hash: bytes  # empty for a chain's first block
    payload: bytes
    tenant: str = ""  # of the request


@dataclass(frozen=True, slots=True)
class BlockStored:
    block_hashes: Sequence[bytes]
    parent_block_hash: bytes  # of the first of `block_hashes`; empty for a chain's first block


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    block_hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    pass


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that one engine step has to say, for every request in its batch."""

    outputs: Sequence[TokenOutput] = ()
    ended: Sequence[RequestEnd] = ()
    full_blocks: Sequence[FullBlock] = ()
    kv_events: Sequence[KvEvent] = ()
