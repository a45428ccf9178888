"""One request as the leader follows it: its tokens, its chain, its blocks, and which of them are to be saved. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from weir.kvstore.v1.block_hash import block_hash
from weir_executor.trtllm.connector.plan import Save

# Where a layer remembers no more of a block.
_NO_BLOCK = -1


class Chain:
    """Hashes of a prompt's full blocks, each computed when it is first asked for: a long prompt comes in chunks."""

    def __init__(self, root: bytes, block_size: int) -> None:
        self.root, self._block_size = root, block_size
        self.tokens: list[int] = []
        self._hashes: list[bytes] = []

    def hashes(self, blocks: int) -> Sequence[bytes]:
        """Of the first so many, at least; no more than are full."""
        blocks = min(blocks, len(self.tokens) // self._block_size)
        while len(self._hashes) < blocks:
            begin = len(self._hashes) * self._block_size
            parent = self._hashes[-1] if self._hashes else self.root
            self._hashes.append(block_hash(parent, self.tokens[begin : begin + self._block_size]))
        return self._hashes


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks `first_block` to `end_block` of a request, staged and leased. `computed_tokens` the engine had itself."""

    lease: str
    file_first_block: int
    first_block: int
    end_block: int
    computed_tokens: int
    is_async: bool


@dataclass(slots=True)
class Tracked:
    """`chain` None: it shares nothing. `saved`: blocks before this one need not be saved, or are."""

    chain: Chain | None
    block_ids: list[int] = field(default_factory=list)
    saved: int = 0
    has_saves: bool = False
    # Of an async load that the engine has not shown to be over: its blocks are being written to.
    is_loading: bool = False

    def extend(self, tokens: Sequence[int], block_ids: Sequence[int]) -> None:
        if self.chain is not None:
            self.chain.tokens.extend(tokens)
        self.block_ids.extend(block_ids)

    def saves(self, request_id: int, valid_tokens: int, block_size: int) -> Iterator[Save]:
        """Runs of blocks that are full once `valid_tokens` positions hold what they should."""
        if self.chain is None:
            return
        valid = min(valid_tokens, len(self.chain.tokens))
        end = min(valid // block_size, len(self.block_ids))
        begin, self.saved = self.saved, max(self.saved, end)
        hashes = self.chain.hashes(end)
        for first, after in _runs(self.block_ids, begin, end):
            self.has_saves = True
            parent = hashes[first - 1] if first else b""
            yield Save(request_id, self.chain.root, parent, hashes[first:after], self.block_ids[first:after])


def _runs(block_ids: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Of neighbours that all are somewhere."""
    first = begin
    for place in range(begin, end):
        if block_ids[place] == _NO_BLOCK:
            if first < place:
                yield first, place
            first = place + 1
    if first < end:
        yield first, end
