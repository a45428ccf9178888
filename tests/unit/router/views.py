"""Workers as a test states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import (
    ExecutorModel,
    ExecutorView,
    Load,
    PostprocessorView,
    Price,
    Role,
    TokenizerModel,
    TokenizerView,
    Traits,
    WorkerState,
)
from weir_router.policies.policy import Demand

SERVING, DRAINING, DOWN = WorkerState.SERVING, WorkerState.DRAINING, WorkerState.DOWN


def version(revision: str = "r1", model: str = "m") -> Version:
    return Version(model, revision, "t" * 32)


def executor(
    address: str = "e",
    *,
    revision: str = "r1",
    model: str = "m",
    state: WorkerState = SERVING,
    routed: int = 0,
    foreign: int = 0,
    max_model_len: int = 100,
    block_size: int = 16,
    embedding_size: int = 8,
    adapters: Mapping[str, str] | None = None,
    role: Role = Role.BOTH,
    region: str = "",
    weight: float = 1.0,
    ramp: float = 1.0,
    price: Price | None = None,
    load: Load | None = None,
    **counts: Any,
) -> ExecutorView:
    """`counts`: the view's other fields by name."""
    known = ExecutorModel(version(revision, model), 300, max_model_len, block_size, embedding_size)
    return ExecutorView(
        address,
        state,
        known,
        routed_tokens=routed,
        foreign_tokens=foreign,
        adapters=adapters or {},
        role=role,
        traits=Traits(region=region, weight=weight, price=price),
        load=load,
        ramp=ramp,
        **counts,
    )


def unknown_executor(address: str) -> ExecutorView:
    return ExecutorView(address, DOWN, None)


def tokenizer(
    address: str = "t",
    *,
    revision: str = "r1",
    model: str = "m",
    state: WorkerState = SERVING,
    template: bool = True,
    region: str = "",
) -> TokenizerView:
    return TokenizerView(address, state, (TokenizerModel(version(revision, model), template),), Traits(region=region))


def postprocessor(
    address: str = "p", *, state: WorkerState = SERVING, live: int = 0, region: str = ""
) -> PostprocessorView:
    return PostprocessorView(address, state, live, Traits(region=region))


def fleet(
    *executors: ExecutorView,
    tokenizers: tuple[TokenizerView, ...] | None = None,
    postprocessors: tuple[PostprocessorView, ...] | None = None,
) -> FleetSnapshot:
    return FleetSnapshot(
        executors,
        (tokenizer(),) if tokenizers is None else tokenizers,
        (postprocessor(),) if postprocessors is None else postprocessors,
    )


def demand(
    *,
    revision: str = "r1",
    prompt_tokens: int = 10,
    max_tokens: int | None = 10,
    n: int = 1,
    turn: int = 0,
    excluded: frozenset[str] = frozenset(),
    adapter: str = "",
    **more: Any,
) -> Demand:
    """`more`: the demand's other fields by name."""
    return Demand(version(revision), prompt_tokens, max_tokens, n, turn, excluded, adapter, **more)
