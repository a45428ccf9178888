"""What is known of each worker at one moment: executors, tokenizers, postprocess replicas, and those that take it all.

Immutable, and as their links, reports and announcements last had it. A snapshot of the fleet is made of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from weir_router.fleet.model_version import Version


class WorkerState(Enum):
    # It has not answered, or its connection failed.
    DOWN = "down"
    # It answers and takes nothing new.
    DRAINING = "draining"
    SERVING = "serving"


class Role(Enum):
    """Which part of a request an executor is there for."""

    # Prompts and first tokens, for others to go on with.
    PREFILL = "prefill"
    # All that comes after; whole requests too.
    DECODE = "decode"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Price:
    """For a million tokens, in millionths of one unit of `currency`."""

    prompt_micros: int
    cached_prompt_micros: int
    completion_micros: int
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a worker says of itself beyond what it serves: `weir.fleet.v1.Instance`. Unset: it has not said."""

    instance_id: str = ""
    epoch: int = 0
    # Empty: in none, so that a request that must stay in a region does not go there.
    region: str = ""
    price: Price | None = None
    # Its share among equals.
    weight: float = 1.0
    capabilities: frozenset[str] = frozenset()
    # Requests at once; 0: it does not say.
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """An executor's own report. `sequence` grows within an `epoch`; ages and steps are seconds."""

    epoch: int
    sequence: int
    age_seconds: float
    waiting_requests: int = 0
    running_sequences: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    # Generated lately, over all sequences.
    tokens_per_second: float = 0.0
    step_seconds: float = 0.0
    # Of the outstanding tokens, those of prompts, and what one of them takes; None: it has computed none yet.
    outstanding_prefill_tokens: int = 0
    prefill_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ExecutorModel:
    """What an executor serves and its limits, as GetModelInfo said."""

    version: Version
    vocab_size: int
    # Prompt and generated tokens together.
    max_model_len: int
    # Tokens.
    block_size: int
    # Values of a vector; 0: it makes none.
    embedding_size: int = 0
    # Engine, kernels, number formats, defaults: two executors of one version draw the same tokens where it is the same.
    numerics: str = ""
    # What is resumed there goes on otherwise than it would have.
    draws_anew: bool = False


@dataclass(frozen=True, slots=True)
class ExecutorView:
    address: str
    state: WorkerState
    # As last known; None when it has never answered.
    model: ExecutorModel | None
    # What this router has given it and has not had back: prompt tokens not yet prefilled, tokens still to come at most.
    routed_tokens: int = 0
    # What others have given it, as far as its newest report tells.
    foreign_tokens: int = 0
    # Those it has loaded, as far as it has told: name → fingerprint.
    adapters: Mapping[str, str] = field(default_factory=dict)
    role: Role = Role.BOTH
    traits: Traits = Traits()
    # None before the first report.
    load: Load | None = None
    # (0, 1]: the share of its part that it is to get while it is new.
    ramp: float = 1.0
    # Of the routed and of the foreign tokens, those of prompts that it has yet to compute.
    routed_prefill_tokens: int = 0
    foreign_prefill_tokens: int = 0
    # It failed too often lately: others are preferred while there are any.
    ejected: bool = False

    @property
    def outstanding_tokens(self) -> int:
        return self.routed_tokens + self.foreign_tokens

    def recounted(
        self, routed_tokens: int, foreign_tokens: int, routed_prefill_tokens: int, foreign_prefill_tokens: int
    ) -> ExecutorView:
        """The same with these counts. Field by field, for `dataclasses.replace` takes three times as long."""
        return ExecutorView(
            self.address,
            self.state,
            self.model,
            routed_tokens,
            foreign_tokens,
            self.adapters,
            self.role,
            self.traits,
            self.load,
            self.ramp,
            routed_prefill_tokens,
            foreign_prefill_tokens,
            self.ejected,
        )

    @property
    def decodes(self) -> bool:
        """Whether it takes requests to their end."""
        return self.role is not Role.PREFILL


@dataclass(frozen=True, slots=True)
class TokenizerModel:
    version: Version
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class TokenizerView:
    address: str
    state: WorkerState
    # As last known.
    models: tuple[TokenizerModel, ...] = ()
    traits: Traits = Traits()
    ejected: bool = False
    # It lacks what this router asks by, and is given nothing.
    too_old: bool = False


@dataclass(frozen=True, slots=True)
class PostprocessorView:
    address: str
    state: WorkerState
    # This router's requests on it.
    live_requests: int = 0
    traits: Traits = Traits()
    ejected: bool = False


@dataclass(frozen=True, slots=True)
class ExternalView:
    """A worker that takes whole requests, text to text: a provider, or another router."""

    address: str
    state: WorkerState
    # By the names that clients use here.
    models: Mapping[str, ExecutorModel] = field(default_factory=dict)
    traits: Traits = Traits()
    # Whether it passes requests on, as a router does, and may pass them back here.
    forwards: bool = False
    # What it can do of what not all can (`providers/needs.py`); None: all that this router can.
    abilities: frozenset[str] | None = frozenset()
    # It is asked when no executor can be, or while each of them owes so many tokens; None: like an executor.
    overflow_above_tokens: int | None = None
    # This router's requests on it, and the tokens that they may still cost.
    routed_requests: int = 0
    routed_tokens: int = 0
    # Until it takes requests again, as it has said itself; 0: it does.
    rest_seconds: float = 0.0
    # Models for which it failed too often: it is tried now and then.
    ejected: frozenset[str] = frozenset()

    @property
    def has_room(self) -> bool:
        return self.rest_seconds <= 0 and self.routed_requests < self.traits.capacity
