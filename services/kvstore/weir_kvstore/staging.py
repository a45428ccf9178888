"""The blocks of one put, whichever way their bytes come: room that nobody sees, then visible all at once, or freed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil

from weir_chassis.errors import InvalidArgument
from weir_kvstore.block import Block
from weir_kvstore.bounds import MAX_PUT_BLOCKS
from weir_kvstore.record import Address, Record
from weir_kvstore.short_prefixes import too_short
from weir_kvstore.store import BlockStore


@dataclass(frozen=True, slots=True)
class PutBegin:
    """What holds for all blocks of one put."""

    namespace: bytes
    tenant: str = ""
    block_size: int = 0  # tokens in one block; 0: not told
    prefill_seconds: float = 0.0  # what computing one block took; 0: not told


@dataclass(frozen=True, slots=True)
class PutResult:
    stored: int = 0
    present: int = 0
    corrupt: int = 0
    refused: int = 0


class NoPlace(Enum):
    """Why a block's bytes need not come."""

    PRESENT = "present"  # it is held already
    REFUSED = "refused"  # no room can be made


class Staging:
    """reserve ──▶ keep ──▶ publish       all that was kept, in one instant
    └────▶ drop                 its bytes are not what they should be
    └────▶ end                  frees whatever was not published
    """

    def __init__(self, store: BlockStore, begin: PutBegin) -> None:
        self._store = store
        self._ram = store.ram
        self._begin = begin
        self._reserved: dict[int, Block] = {}  # by id: nothing is known of their bytes
        self._kept: list[Block] = []  # whole and verified
        self._present: list[Address] = []
        self._num_blocks = self._num_corrupt = self._num_refused = 0

    @property
    def reserved(self) -> list[Block]:
        return list(self._reserved.values())

    def reserve(self, block_hash: bytes, parent_block_hash: bytes, size_bytes: int, checksum: int) -> Block | NoPlace:
        """Room for one more block. Raises InvalidArgument for one too many."""
        self._num_blocks += 1
        if self._num_blocks > MAX_PUT_BLOCKS:
            raise InvalidArgument("chunk", f"more than {MAX_PUT_BLOCKS} blocks in one put")
        begin, address = self._begin, Address(self._begin.namespace, block_hash)
        if self._store.find(address) is not None:
            self._present.append(address)
            return NoPlace.PRESENT
        account = self._store.account(begin.tenant)
        record = Record(address, parent_block_hash, size_bytes, checksum, account, begin.prefill_seconds)
        if not self._ram.rules.admission.admits(record):
            self._ram.counters.not_admitted += 1
            self._num_refused += 1
            return NoPlace.REFUSED
        block = self._ram.reserve(record)
        if block is None:
            self._refuse(1)
            return NoPlace.REFUSED
        self._reserved[block.block_id] = block
        return block

    def keep(self, block: Block) -> None:
        self._kept.append(self._reserved.pop(block.block_id))

    def drop(self, block: Block) -> None:
        self._ram.discard(self._reserved.pop(block.block_id))
        self._ram.counters.corrupt += 1
        self._num_corrupt += 1

    def publish(self) -> PutResult:
        self._drop_short()
        kept, self._kept = self._kept, []
        stored = self._ram.publish(kept)
        held = sum(self._store.find(address) is not None for address in self._present)
        # What was held when it was offered, and was let go for that, may have been evicted since.
        self._refuse(len(self._present) - held)
        return PutResult(stored, len(kept) - stored + held, self._num_corrupt, self._num_refused)

    def end(self) -> None:
        """Once is as good as twice."""
        for block in (*self._reserved.values(), *self._kept):
            self._ram.discard(block)
        self._reserved, self._kept = {}, []

    def _drop_short(self) -> None:
        block_size = self._begin.block_size
        min_blocks = ceil(self._store.bounds.min_prefix_tokens / block_size) if block_size else 0
        short = too_short(self._kept, min_blocks, lambda address: self._store.find(address) is not None)
        for block in short:
            self._kept.remove(block)
            self._ram.discard(block)
        self._ram.counters.not_admitted += len(short)
        self._num_refused += len(short)

    def _refuse(self, blocks: int) -> None:
        self._ram.counters.refused += blocks
        self._num_refused += blocks
