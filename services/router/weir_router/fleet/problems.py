"""What is missing in the fleet, in words for its operators. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from weir_router.fleet.membership import KINDS, WorkerKind
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, PostprocessorView, TokenizerView, WorkerState

_NAMES: Final[Mapping[WorkerKind, str]] = {
    "executor": "executor",
    "tokenizer": "tokenizer",
    "postprocess": "postprocess service",
}
_Views = Sequence[ExecutorView | TokenizerView | PostprocessorView]


def problems(snapshot: FleetSnapshot, left_out: Mapping[WorkerKind, int], unheard: Sequence[str]) -> list[str]:
    """`unheard`: names of sources from which nothing comes now."""
    return [*_missing(snapshot), *_unanswered(snapshot), *_too_many(left_out), *map(_unheard, unheard)]


def _missing(snapshot: FleetSnapshot) -> Iterator[str]:
    """Workers outside the suite take whole requests: where one serves, no kind has to be there."""
    if any(worker.state is WorkerState.SERVING for worker in snapshot.externals):
        return
    kinds: Mapping[WorkerKind, _Views] = {
        "executor": snapshot.executors,
        "tokenizer": snapshot.tokenizers,
        "postprocess": snapshot.postprocessors,
    }
    for kind in KINDS:
        if not any(view.state is WorkerState.SERVING for view in kinds[kind]):
            yield f"no {_NAMES[kind]} is healthy: {len(kinds[kind])} are known"


def _unanswered(snapshot: FleetSnapshot) -> Iterator[str]:
    for model in snapshot.known_models():
        if not snapshot.answers(model):
            yield f"a request for model {model!r} would find no worker of each kind"
    for model in sorted(snapshot.departed):
        yield f"every executor that served {model!r} has left"
    for tokenizer in snapshot.tokenizers:
        if tokenizer.too_old:
            yield f"tokenizer {tokenizer.address} is older than this router and is given no requests: upgrade it first"
    for address in snapshot.mismatched():
        yield f"executor {address} holds a revision that no tokenizer holds, and is given no requests"


def _too_many(left_out: Mapping[WorkerKind, int]) -> Iterator[str]:
    for kind, count in left_out.items():
        yield f"{count} more of kind {kind} are known than this router connects to"


def _unheard(source: str) -> str:
    return f"{source} does not answer: workers that do are kept, and new ones are not found"
