"""The fleet as it was at one moment: immutable, and all that a decision may look at.

An executor may be given a request when it is SERVING and its model version is that of a tokenizer, because prompt,
block hashes and answer mean the same only under the same revision. A tokenizer that is away is believed to be what it
last was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any, Final, TypeVar

from weir_chassis.errors import InvalidArgument, ModelNotFound, NotFound, NoWorker, RevisionMismatch
from weir_router.fleet.model_version import Version
from weir_router.fleet.views import ExecutorView, ExternalView, PostprocessorView, TokenizerView, WorkerState
from weir_router.regions import Residency

T = TypeVar("T")

# Each for a model, an adapter, a set of regions: of these there are few, but clients may name any.
_MAX_KEPT: Final = 4096


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
