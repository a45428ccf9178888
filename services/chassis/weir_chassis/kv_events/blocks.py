"""KV events, and what they leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from weir.inference.v1.kv_event_pb2 import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, KvReset
from weir.kvstore.v1.block_hash import DIGEST_BYTES, join_hashes, split_hashes
from weir_chassis.event_log import Batch, EventLog

KvEventLog: TypeAlias = EventLog[KvEvent]

# One event, 32 KiB of hashes, fits whatever message may carry it: only lists of events are ever split.
MAX_EVENT_BLOCKS: Final = 2048


def new_log(epoch: int, capacity_blocks: int) -> KvEventLog:
    """The log of a source that holds nothing yet."""
    return EventLog(epoch, capacity_blocks, HeldBlocks())


def stored(
    block_hashes: Sequence[bytes], parent_block_hash: bytes, *, tier: str, namespace: bytes = b""
) -> Iterator[KvEvent]:
    """Blocks of which each but the first follows the one before it."""
    for part in _parts(block_hashes):
        hashes = join_hashes(part)
        yield KvEvent(
            stored=BlocksStored(
                block_hashes=hashes, parent_block_hash=parent_block_hash, tier=tier, namespace=namespace
            )
        )
        parent_block_hash = part[-1]


def removed(block_hashes: Sequence[bytes], *, tier: str, namespace: bytes = b"") -> Iterator[KvEvent]:
    for part in _parts(block_hashes):
        yield KvEvent(removed=BlocksRemoved(block_hashes=join_hashes(part), tier=tier, namespace=namespace))


def cleared(*, tier: str) -> KvEvent:
    return KvEvent(cleared=BlocksCleared(tier=tier))


def told(batch: Batch[KvEvent]) -> list[KvEvent]:
    """Its events in a message, in front of them the reset if it is one."""
    return [KvEvent(reset=KvReset()), *batch.events] if batch.reset else list(batch.events)


def num_blocks(event: KvEvent) -> int:
    """How many it names."""
    return (len(event.stored.block_hashes) or len(event.removed.block_hashes)) // DIGEST_BYTES


class HeldBlocks:
    """Block → parent, by tier and namespace: `event_log.Held`. Some 250 bytes for each block that the source holds."""

    def __init__(self) -> None:
        # In the order of arrival, so that chains mostly stand in a row; no entry without blocks.
        self._held: dict[tuple[str, bytes], dict[bytes, bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def parents(self, tier: str, namespace: bytes = b"") -> dict[bytes, bytes]:
        """Block → parent of what is held there: a copy."""
        return dict(self._held.get((tier, namespace), {}))

    def apply(self, event: KvEvent) -> None:
        match event.WhichOneof("event"):
            case "stored":
                self._store(event.stored)
            case "removed":
                self._remove(event.removed)
            case "cleared":
                self._held = {key: held for key, held in self._held.items() if key[0] != event.cleared.tier}
            case "reset":
                self._held.clear()
            case kind:
                raise AssertionError(kind)

    def snapshot(self) -> Iterator[KvEvent]:
        """One event for each run of blocks in which each is the parent of the next."""
        held = [(tier, namespace, list(blocks.items())) for (tier, namespace), blocks in self._held.items()]
        return (
            event
            for tier, namespace, blocks in held
            for run, parent in _runs(blocks)
            for event in stored(run, parent, tier=tier, namespace=namespace)
        )

    def size_of(self, event: KvEvent) -> int:
        """Blocks."""
        return max(1, num_blocks(event))

    def _store(self, event: BlocksStored) -> None:
        held = self._held.setdefault((event.tier, event.namespace), {})
        parent = event.parent_block_hash
        for block_hash in split_hashes(event.block_hashes):
            held[block_hash] = parent
            parent = block_hash

    def _remove(self, event: BlocksRemoved) -> None:
        key = (event.tier, event.namespace)
        held = self._held.get(key, {})
        for block_hash in split_hashes(event.block_hashes):
            held.pop(block_hash, None)
        if not held:
            self._held.pop(key, None)


def _runs(blocks: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[list[bytes], bytes]]:
    """Runs of a chain's blocks, each with the parent of its first one."""
    run: list[bytes] = []
    first_parent = b""
    for block_hash, parent in blocks:
        if run and parent != run[-1]:
            yield run, first_parent
            run = []
        if not run:
            first_parent = parent
        run.append(block_hash)
    if run:
        yield run, first_parent


def _parts(block_hashes: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(block_hashes), MAX_EVENT_BLOCKS):
        yield block_hashes[start : start + MAX_EVENT_BLOCKS]
