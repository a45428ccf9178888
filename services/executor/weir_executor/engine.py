"""The waist of the executor: what every engine is asked and what it answers.

An engine turns token ids into token ids. It knows requests, steps, load and KV events; it knows no gRPC, no text and no
tenants' budgets. The paged engine, TensorRT-LLM, a server that speaks openengine.v1 and the fake all implement `Engine`
and pass one contract suite.

Who calls what, from where:

    servicer (event loop thread)                        engine (its own step thread)
    ----------------------------                        ----------------------------
    submit(request)   raises what is wrong with it  →   queued; seen before the next step
    abort(key)        never blocks, may be late     →   seen before the next step
                      deliver(StepOutput)           ←   once per step, all requests in it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from weir_executor.adapters.config import AdapterConfig
from weir_executor.estimate import Estimate
from weir_executor.guided.guide import CompiledGuide


class FinishReason(Enum):
    """Why one output of a request ended. The names are those of `weir.inference.v1.FinishReason`."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Watermark:
    """Makes some tokens likelier, by a key that nobody else knows. See `watermark/green.py`."""

    key: bytes = field(repr=False)  # 16 bytes, the tenant's
    green_fraction: float = 0.25
    bias: float = 2.0  # added to the logits of green tokens


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Every value is already validated and defaulted; `temperature` 0 is greedy.

    A draw is a pure function of (`seed`, output index, token position): a sequence that is preempted, batched with
    others, or resumed on another worker draws the same tokens.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    top_logprobs: int | None = None  # None: no logprobs; 0: of the drawn token only; k: and of the k best
    watermark: Watermark | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the next token is drawn from the logits as they come, and nothing else is asked."""
        return (
            self.top_logprobs is None
            and self.repetition_penalty == 1.0
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias or self.watermark)
        )


class SpeculationMode(Enum):
    """Where guesses at the next tokens come from. An output's tokens are the same with any."""

    OFF = "off"
    NGRAM = "ngram"  # what followed the same tokens earlier in prompt and output
    DRAFT_MODEL = "draft_model"  # a smaller model of the same vocabulary


class PoolingKind(Enum):
    """How the hidden states of a prompt's tokens, after the last norm, become one vector."""

    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Pooling:
    """That a request wants one vector and no tokens. The mean is summed in float32, whatever the model computes in."""

    kind: PoolingKind
    normalize: bool = True  # to length 1


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """Blocks that the kvstore returned for this prompt, verified, in the engine's own block layout.

    `blocks[i]` holds the KV of the prompt's full block number `first_block + i`.
    """

    first_block: int
    blocks: Sequence[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and `n` outputs wanted of it. `key` is chosen by the caller and unique among live requests.

    With `pooling` the prompt is prefilled and nothing is generated: `max_tokens` is 0 and `n` 1, and the `RequestEnd`
    brings the vector. A mean needs every token's hidden state, so it takes nothing from cached blocks; the last
    token's does.
    """

    key: int
    token_ids: Sequence[int]
    max_tokens: int
    block_hashes: Sequence[
        bytes
    ] = ()  # of the prompt's full blocks, chained; empty: the engine computes none and shares none
    sampling: Sampling = Sampling()
    n: int = 1
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    priority: int = 0  # higher goes first
    place: int = 0  # in line, among equals: lower goes first; of one place, first come, first served
    tenant: str = ""  # whose share and quotas apply; empty: that of all who name none
    resumed: Mapping[int, Sequence[int]] = field(default_factory=dict)  # output index → tokens it has already emitted
    stored_prefix: StoredPrefix | None = None
    cache_scope: bytes = b""  # seeds the hashes of blocks that generated tokens fill; see weir.kvstore.v1.block_hash
    pooling: Pooling | None = None
    guide: CompiledGuide | None = None  # what each output must be
    adapter: str = ""  # the name of one that is loaded; empty: none
    speculation: SpeculationMode | None = None  # None: as the engine is set
    max_draft_tokens: int | None = None  # per step; None: as the engine is set
    hand_off: bool = False  # another engine goes on after each output's next tokens: see `RequestEnd.held_blocks`
    handed_state: bytes = (
        b""  # `RequestEnd.handed_state` of the engine that has computed the prompt, of this one's format
    )


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
