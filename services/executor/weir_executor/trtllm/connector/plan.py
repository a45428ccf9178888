"""What the leader tells every rank to do in one iteration. Small, and pickled on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks of a staged prefix, `skip_blocks` of it left out, into the engine's blocks of these ids."""

    request_id: int
    lease: str  # of `AreaView.open`
    skip_blocks: int
    block_ids: Sequence[int]
    is_async: bool


@dataclass(frozen=True, slots=True)
class Save:
    """Full blocks that this iteration's step completes, one after another in a chain."""

    request_id: int
    root: bytes  # the scope's
    parent_hash: bytes  # of the first; empty at the chain's beginning
    hashes: Sequence[bytes]
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class StepPlan:
    loads: Sequence[Load] = ()
    saves: Sequence[Save] = ()
    withdrawn: Sequence[int] = ()  # requests that ended before their blocks were to be loaded: they will not be
