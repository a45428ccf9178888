"""Chains that are being put: what a new block continues does not go to make room for it..

    others have to go for a block   ──▶ the visible ones before it in its chain are referred to
    the next block of the chain     ──▶ joins the same line, so that a chain that comes block by block is walked once
    nothing more comes, or its room is wanted by somebody who finds no other ──▶ the references are given back

Without it a new chain goes first wherever the others have been used more often, and what is left cannot be matched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from weir_chassis.clock import Clock
from weir_kvstore.block import Block
from weir_kvstore.index import Index
from weir_kvstore.record import Address, Record

# A line that nothing is being put into is held for so long: between two batches, or two copies, of one chain.
IDLE_SECONDS: Final = 1.0
# As many as there are open puts by default; whoever loses its line walks back again.
_MAX_LINES: Final = 256


@dataclass(slots=True, eq=False)
class _Line:
    """A chain's beginning."""

    held: list[Block] = field(default_factory=list)  # referred to once each, parents first
    held_ids: set[int] = field(default_factory=set)
    coming: set[int] = field(default_factory=set)  # ids of reserved blocks
    addresses: list[Address] = field(default_factory=list)  # of those that came since it began
    used_at: float = 0.0


class Growing:
    """The lines of one tier."""

    def __init__(self, index: Index, clock: Clock, *, give_back: Callable[[Sequence[Block]], None]) -> None:
        self._index = index
        self._clock = clock
        self._give_back = give_back
        self._lines: dict[_Line, None] = {}  # the longest unused first
        self._by_address: dict[Address, _Line] = {}
        self._by_coming: dict[int, _Line] = {}
        self._held: Counter[int] = Counter()  # block id → lines

    def __len__(self) -> int:
        return len(self._lines)

    def hold(self, record: Record) -> None:
        """Somebody will have to go for this block, and none of those that it continues."""
        line = self._by_address.get(record.address) or self._by_address.get(_parent(record)) or _Line()
        self._use(line)
        self._refer(line, self._index.line(_parent(record), line.held_ids)[::-1])
        if self._by_address.get(record.address) is not line:
            self._by_address[record.address] = line
            line.addresses.append(record.address)
        if len(self._lines) > _MAX_LINES:
            self._let_go(next(iter(self._lines)))

    def reserved(self, block: Block) -> None:
        """The block is coming."""
        line = self._by_address.get(block.address)
        if line is not None:
            line.coming.add(block.block_id)
            self._by_coming[block.block_id] = line

    def published(self, blocks: Sequence[Block]) -> None:
        """They are visible, and what is coming still may continue them."""
        lines = [(line, block) for block in blocks if (line := self._ended(block)) is not None]
        for line, block in lines:
            if line.held or line.coming:
                line.held_ids.add(block.block_id)
                self._refer(line, [block])
        for line, _ in lines:
            self._use_or_forget(line)

    def discarded(self, block: Block) -> None:
        """It does not come."""
        line = self._ended(block)
        if line is not None:
            self._use_or_forget(line)

    def forget(self, blocks: Sequence[Block]) -> None:
        """These are to be hidden: nothing can be matched behind them, and they are not to stay for it."""
        lost = {block.block_id for block in blocks if block.block_id in self._held}
        if lost:
            self._let_go_all(lambda line: not line.held_ids.isdisjoint(lost))

    def keep_only(self, record: Record) -> None:
        """No room can be made for this block otherwise: all lines but its own are given back."""
        own = self._by_address.get(record.address)
        self._let_go_all(lambda line: line is not own)

    def let_go(self) -> None:
        """All of them are given back."""
        self._let_go_all(lambda _: True)

    def sweep(self) -> None:
        """Those that nothing comes to are given back."""
        until = self._clock.monotonic() - IDLE_SECONDS
        self._let_go_all(lambda line: not line.coming and line.used_at <= until)

    def _use(self, line: _Line) -> None:
        self._lines.pop(line, None)
        self._lines[line] = None
        line.used_at = self._clock.monotonic()

    def _use_or_forget(self, line: _Line) -> None:
        """One that holds nobody is begun anew when more comes: most chains end with their first put."""
        if line.held or line.coming:
            self._use(line)
        elif line in self._lines:
            self._let_go(line)

    def _refer(self, line: _Line, blocks: list[Block]) -> None:
        """`blocks`: those that the line has just been told of."""
        if blocks:
            self._index.refer(blocks)
            line.held += blocks
            self._held.update(block.block_id for block in blocks)

    def _ended(self, block: Block) -> _Line | None:
        """The line that the block was coming to."""
        line = self._by_coming.pop(block.block_id, None)
        if line is not None:
            line.coming.remove(block.block_id)
        return line

    def _let_go_all(self, which: Callable[[_Line], bool]) -> None:
        for line in [line for line in self._lines if which(line)]:
            self._let_go(line)

    def _let_go(self, line: _Line) -> None:
        """However a line ends, it ends here."""
        del self._lines[line]
        for address in line.addresses:
            if self._by_address.get(address) is line:
                del self._by_address[address]
        for block_id in line.coming:
            del self._by_coming[block_id]
        for block_id in line.held_ids:
            self._held[block_id] -= 1
            if not self._held[block_id]:
                del self._held[block_id]
        if line.held:
            self._give_back(line.held)


def _parent(record: Record) -> Address:
    return Address(record.address.namespace, record.parent_block_hash)
