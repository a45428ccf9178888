"""What an engine is asked: a prompt, how many outputs of it, how they are drawn and what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from weir_executor.guided.guide import CompiledGuide


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
