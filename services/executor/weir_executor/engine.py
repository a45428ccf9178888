"""The waist of the executor: what every engine is asked and what it answers.

An engine turns token ids into token ids. It knows requests, steps, load and KV events; it knows no gRPC, no text and no
tenants' budgets. The paged engine, TensorRT-LLM, a server that speaks openengine.v1 and the fake all implement `Engine`
and pass one contract suite. What goes in is a `GenerationRequest` (`request.py`), what comes out is a `StepOutput`
(`step_output.py`); what an engine says of itself is here.

Who calls what, from where:

    servicer (event loop thread)                        engine (its own step thread)
    ----------------------------                        ----------------------------
    submit(request)   raises what is wrong with it  →   queued; seen before the next step
    abort(key)        never blocks, may be late     →   seen before the next step
                      deliver(StepOutput)           ←   once per step, all requests in it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from weir_executor.adapters.config import AdapterConfig
from weir_executor.estimate import Estimate
from weir_executor.request import GenerationRequest, SpeculationMode
from weir_executor.step_output import StepOutput


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine serves and its limits; constant after `start`."""

    engine: str  # "paged", "trtllm", "openengine", "fake"
    vocab_size: int
    max_model_len: int  # prompt and generated tokens together
    block_size: int  # tokens per KV block
    num_blocks: int
    max_num_seqs: int  # sequences running at once
    max_n: int
    max_top_logprobs: int
    eos_token_ids: frozenset[int]
    block_bytes: int  # of one KV block's payload, all layers
    kv_dtype: str
    kv_layout: str  # names the order of axes inside a block's payload; part of the store's namespace
    transfers_blocks: bool  # takes `stored_prefix` and emits `full_blocks`
    takes_prefixes: bool = False  # takes `stored_prefix`, and puts its full blocks into the store by itself
    # Names of the parts of which each is stored by itself, in the order in which they make up a block's payload; see
    # `shard_namespace`. Empty: blocks are whole.
    shards: tuple[str, ...] = ()
    embedding_size: int = 0  # values of a pooled vector; 0: the engine does not pool
    takes_guides: bool = False
    takes_watermarks: bool = False
    max_adapters: int = 0  # that fit at once; 0: the engine has none
    max_adapter_rank: int = 0
    speculation_modes: tuple[SpeculationMode, ...] = ()  # that a request may ask for, besides none
    max_draft_tokens: int = 0  # that a request may ask for per step
    # How the weights are kept and what computes with them: "bfloat16, native avx512bf16". Where it is the same, two
    # engines of one model draw the same tokens.
    compute: str = ""
    draws_anew: bool = False  # an output that is resumed goes on otherwise than it would have
    hands_off: bool = False  # takes `hand_off`
    handoff_format: str = ""  # of `handed_state`; empty: prompts are handed over as blocks


class WaitingReason(Enum):
    """Why a sequence is not in the batch. The names are those of `weir.executor.v1.WaitingReason`."""

    NEW = "new"
    NO_SLOT = "no_slot"
    NO_BLOCKS = "no_blocks"
    NO_TOKENS = "no_tokens"
    BEHIND_ANOTHER = "behind_another"
    TENANT_SLOTS = "tenant_slots"
    TENANT_BLOCKS = "tenant_blocks"
    SHARED_PREFIX = "shared_prefix"
    PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True)
class RequestState:
    """One live request now. `waiting_reason` is that of the first sequence that waits; None: none does."""

    key: int
    tenant: str
    priority: int
    running_sequences: int
    waiting_sequences: int
    waiting_reason: WaitingReason | None
    age_seconds: float  # since it was submitted
    prompt_tokens: int
    computed_tokens: int  # of the sequence that is furthest
    completion_tokens: int  # over all outputs
    blocks: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step's batch."""

    sequences: int
    prefill_tokens: int
    decode_tokens: int  # one for each decode, and its drafts
    draft_tokens: int  # of the decode tokens, those that were guesses
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's state after its newest step. `step` counts steps since start, so that an observer sees progress."""

    step: int
    waiting_requests: int
    running_sequences: int
    free_blocks: int  # unused, or cached and reusable
    total_blocks: int
    cached_blocks: int  # hold a hash and no owner
    outstanding_tokens: int  # still to prefill, plus still to generate at most
    preemptions: int  # since start
    last_step_seconds: float
    progress: int = 0  # grows with each token computed for the first time and each output that ends; steps alone do not
    last_batch: StepStats | None = None  # of the newest step that computed anything
    prefill_tokens: int = 0  # computed since start, as are the next two
    decode_tokens: int = 0
    draft_tokens: int = 0
    busy_seconds: float = 0.0  # in steps, since start
    chunk_tokens: int = 0  # of prompts that a step computes at most beside its decodes
    outstanding_prefill_tokens: int = 0  # still to prefill, of all that run and wait
    prefill_token_seconds: Estimate | None = None  # what a prompt's token takes, in steps as they lately are
    held_blocks: int = 0  # kept for others after their requests ended
    away: bool = False  # it runs elsewhere and cannot be asked now; it may be back, and refuses what comes meanwhile


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that is loaded."""

    name: str
    rank: int
    fingerprint: str  # of its files, 32 hex characters: what must agree before two requests may share a block
    num_bytes: int  # of memory


Deliver = Callable[[StepOutput], None]
Wants = Callable[[bytes], bool]  # whether the block of this hash is worth copying out


class Engine(Protocol):
    """Token ids in, token ids out, in steps."""

    @property
    def info(self) -> EngineInfo: ...

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:
        """Warm up, and begin stepping. Returns when the first request can be served; raises what stands against it.

        `deliver` is called on the engine's thread, at most once per step, and must not block; so is `wants`, for each
        full block before it is copied out. None: all are wanted.
        """

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Returns at once.

        Raises a `WeirError` when the request can never run here (too long for the context or the pool, a token id
        outside the vocabulary, `n` over the limit, no such adapter) or the waiting queue is full. What was submitted
        ends in exactly one `RequestEnd`.
        """

    def abort(self, key: int, output_index: int | None = None) -> None:
        """End a request, or one of its outputs, before the next step. Unknown keys are ignored: it may have just ended.

        An output aborted alone ends with no further `TokenOutput`; the `RequestEnd` follows the last live output.
        """

    def cached_prefix_blocks(self, block_hashes: Sequence[bytes]) -> int:
        """How many leading blocks the pool holds now: an estimate, for what not to load. Thread-safe; pins nothing."""

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:
        """Copies of `count` of the blocks that an ended request left, from number `first` of them on.

        None: some are not held any more. Takes its time, perhaps a step's; on any thread, one call at a time on each.
        """

    def release_held(self, key: int) -> None:
        """The blocks that the ended request left are free before the next step. Unknown keys are ignored."""

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        """Read an adapter and make it ready: requests may name it from the return on. Takes its time; any thread.

        `note` hears how many of how many bytes are read; what it raises ends the load and leaves nothing behind. Raises
        InvalidArgument naming the file and the tensor, AlreadyExists, Unsupported.
        """

    def unload_adapter(self, name: str) -> None:
        """Give its memory back. No live request may name it, nor may one be submitted meanwhile."""

    def load(self) -> EngineLoad:
        """The newest load. Thread-safe and cheap."""

    def requests(self) -> Sequence[RequestState]:
        """What each live request does now, or waits for. Thread-safe; tells it even while a step hangs."""

    def check_health(self) -> None:
        """Raise the error that stopped the step thread, if one did."""

    def close(self) -> None:
        """Stop the step thread; requests still live end with an UNAVAILABLE error. Idempotent."""
