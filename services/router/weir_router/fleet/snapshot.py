"""The fleet as it was at one moment: immutable, and all that a decision may look at.

An executor may be given a request when it is SERVING and its model version is that of a tokenizer, because prompt,
block hashes and answer mean the same only under the same revision. A tokenizer that is away is believed to be what it
last was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

from weir_chassis.errors import InvalidArgument, ModelNotFound, NotFound, NoWorker, RevisionMismatch
from weir_router.fleet.model_version import Version
from weir_router.regions import Residency

T = TypeVar("T")

# Each for a model, an adapter, a set of regions: of these there are few, but clients may name any.
_MAX_KEPT: Final = 4096


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


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    executors: tuple[ExecutorView, ...] = ()
    tokenizers: tuple[TokenizerView, ...] = ()
    postprocessors: tuple[PostprocessorView, ...] = ()
    # Grows when anything but counts, loads and ramps is another: what is derived from the rest may be kept by it.
    # 0: it is one request's own, or a test's.
    generation: int = 0
    # Models that executors have served which are not there any more. They may come back, so their requests may wait.
    departed: frozenset[str] = frozenset()
    externals: tuple[ExternalView, ...] = ()
    # Of an earlier snapshot that differs from this one in counts, loads and ramps only.
    kept_before: InitVar[dict[Hashable, Any] | None] = None
    # What was derived from everything else: all snapshots of a generation have it in common.
    kept: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self, kept_before: dict[Hashable, Any] | None) -> None:
        if kept_before is not None:
            object.__setattr__(self, "kept", kept_before)

    def kept_or(self, key: Hashable, derive: Callable[[], T]) -> T:
        """What `derive` gives: once in a generation, for nothing but facts may go into it. An error is not kept."""
        found: T | None = self.kept.get(key)
        if found is None:
            if len(self.kept) >= _MAX_KEPT:
                self.kept.clear()
            found = self.kept[key] = derive()
        return found

    def within(self, residency: Residency) -> FleetSnapshot:
        """Without the workers to which the request may not go."""
        if residency.allowed is None:
            return self
        return FleetSnapshot(
            tuple(worker for worker in self.executors if residency.allows(worker.traits.region)),
            tuple(worker for worker in self.tokenizers if residency.allows(worker.traits.region)),
            tuple(worker for worker in self.postprocessors if residency.allows(worker.traits.region)),
            departed=self.departed,
            externals=tuple(worker for worker in self.externals if residency.allows(worker.traits.region)),
            kept_before=self.kept_or(("within", residency.allowed), dict),
        )

    def known_models(self) -> list[str]:
        """Names of what is served or has been served, sorted."""
        return self.kept_or("known_models", self._known_models)

    def _known_models(self) -> list[str]:
        external = {model for worker in self.externals for model in worker.models}
        return sorted({executor.model.version.model for executor in self.executors if executor.model} | external)

    def resolve_model(self, name: str) -> str:
        """The model that a request means. Raises NoWorker, InvalidArgument, ModelNotFound."""
        known = self.known_models()
        if name in known:
            return name
        if not name and len(known) == 1:
            return known[0]  # half a fleet that agrees is enough to go on
        # Who has not answered yet may serve anything, so "there is no such model" would be a guess.
        silent = [executor.address for executor in self.executors if executor.model is None]
        if name in self.departed:
            raise NoWorker(f"every executor that served {name!r} has left")
        if silent or not known:
            raise NoWorker(f"{len(silent)} of {len(self.executors)} executors have not said yet what they serve")
        if name:
            raise ModelNotFound(name, known)
        raise InvalidArgument("model", f"is required: {', '.join(known)} are served here")

    def serving(self, model: str, revision: str = "") -> list[ExecutorView]:
        """Executors of the model that take requests; without a revision, whatever theirs is."""
        return [e for e in self.executors if e.model and _is(e.model.version, model, revision) and _serves(e)]

    def tokenizer_versions(self, model: str, revision: str = "") -> set[Version]:
        """Of the tokenizers that answer; of all, as last known, when none of those has the model (at the revision)."""
        serving = [tokenizer for tokenizer in self.tokenizers if _serves(tokenizer)]
        return _versions(serving, model, revision) or _versions(self.tokenizers, model, revision)

    def resolve_adapter(self, model: str, name: str, revision: str = "") -> str:
        """The fingerprint of the adapter that a request means: where executors differ, what most of them hold.

        Empty for none. Raises NotFound, and what `agreed` does.
        """
        if not name:
            return ""
        agreed = self.agreed(model, revision=revision)
        held = Counter(executor.adapters[name] for executor in agreed if name in executor.adapters)
        if held:
            return max(sorted(held), key=held.__getitem__)
        if any(name in executor.adapters for executor in self.executors if not _serves(executor)):
            raise NoWorker(f"no executor that holds adapter {name!r} is healthy")
        raise NotFound(name, f"no executor of {model!r} has loaded an adapter {name!r}")

    def agreed(self, model: str, adapter: str = "", revision: str = "") -> list[ExecutorView]:
        """Executors that may be given requests for the model, of the revision if one is named, with the adapter of
        this fingerprint.

        Raises NoWorker when none is serving, RevisionMismatch when those that are hold another revision, NotFound when
        none of those that agree has the adapter.
        """
        key = ("agreed", model, adapter, revision)
        executors = self.executors
        return [executors[position] for position in self.kept_or(key, lambda: self._agreed(model, adapter, revision))]

    def _agreed(self, model: str, adapter: str, revision: str) -> list[int]:
        serving = self.serving(model, revision)
        if not serving:
            named = f" at revision {revision!r}" if revision else ""
            raise NoWorker(f"no executor that serves {model!r}{named} is healthy")
        versions = self.tokenizer_versions(model, revision) or self.tokenizer_versions(model)
        if not versions:
            raise NoWorker(f"no tokenizer for {model!r} has answered yet")
        agreed = [executor for executor in serving if executor.model and executor.model.version in versions]
        if not agreed:
            raise revision_mismatch(model, [e.model.version for e in serving if e.model], versions)
        holding = [executor for executor in agreed if not adapter or adapter in executor.adapters.values()]
        if not holding:
            raise NotFound(adapter, f"no executor of {model!r} has the adapter any more")
        addresses = {executor.address for executor in holding}
        return [position for position, executor in enumerate(self.executors) if executor.address in addresses]

    def answers(self, model: str, revision: str = "") -> bool:
        """Whether a request for the model, at the revision if one is named, would find a worker of each kind.

        Or one that needs no others.
        """
        if any(_serves(worker) and _serves_version(worker, model, revision) for worker in self.externals):
            return True
        held = {version for tokenizer in self.tokenizers if _serves(tokenizer) for version in _held(tokenizer)}
        agreed = any(e.model.version in held and e.decodes for e in self.serving(model, revision) if e.model)
        return agreed and any(map(_serves, self.postprocessors))

    def mismatched(self) -> list[str]:
        """Addresses of serving executors whose revision no tokenizer of their model holds."""
        versions = {model: self.tokenizer_versions(model) for model in self.known_models()}
        return [
            executor.address
            for executor in self.executors
            if executor.model and _serves(executor)
            if (held := versions[executor.model.version.model])
            if executor.model.version not in held
        ]

    def has_chat_template(self, version: Version) -> bool:
        return any(m.has_chat_template for t in self.tokenizers for m in t.models if m.version == version)


def _is(version: Version, model: str, revision: str) -> bool:
    return version.model == model and revision in ("", version.revision)


def _serves_version(worker: ExternalView, model: str, revision: str) -> bool:
    return model in worker.models and _is(worker.models[model].version, model, revision)


def _serves(worker: ExecutorView | TokenizerView | PostprocessorView | ExternalView) -> bool:
    return worker.state is WorkerState.SERVING


def _versions(tokenizers: Iterable[TokenizerView], model: str, revision: str) -> set[Version]:
    return {version for tokenizer in tokenizers for version in _held(tokenizer) if _is(version, model, revision)}


def _held(tokenizer: TokenizerView) -> Iterable[Version]:
    return (model.version for model in tokenizer.models)


def revision_mismatch(model: str, executors: Iterable[Version], tokenizers: Iterable[Version]) -> RevisionMismatch:
    theirs = ",".join(sorted(set(map(str, executors))))
    ours = ",".join(sorted(set(map(str, tokenizers))))
    message = f"executors of {model!r} hold revision {theirs}, tokenizers hold {ours}"
    return RevisionMismatch(message, metadata={"executor_revision": theirs, "tokenizer_revision": ours})
