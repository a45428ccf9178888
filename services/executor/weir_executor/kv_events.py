"""The pool's events, as those who follow an executor read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from weir.inference.v1 import kv_event_pb2 as pb
from weir_chassis.kv_events import blocks
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

_TIER: Final = "device"


def recorder(log: blocks.KvEventLog) -> Callable[[Sequence[KvEvent]], None]:
    """What a step's events are handed to, so that the log has them."""
    return lambda events: log.append([told for event in events for told in to_kv_events(event)])


def to_kv_events(event: KvEvent) -> Iterator[pb.KvEvent]:
    """The same, in as many events as its blocks need."""
    if isinstance(event, BlockStored):
        return blocks.stored(event.block_hashes, event.parent_block_hash, tier=_TIER)
    if isinstance(event, BlockRemoved):
        return blocks.removed(event.block_hashes, tier=_TIER)
    assert isinstance(event, AllBlocksCleared), event
    return iter([blocks.cleared(tier=_TIER)])
