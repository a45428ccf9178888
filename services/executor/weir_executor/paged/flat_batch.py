"""One step's tokens, side by side: what every decoder is given. Pure.

    rows        | decode | decode | decode + drafts | prefill chunk ... | prefill chunk ... |
    token_ids   |   t    |   t    |    t  d  d  d   | t t t t t t t t t | t t t t t t t t t |
    ends            ^        ^               ^                        ^                   ^
    wanted          ^        ^       ^  ^  ^  ^                                           ^

`wanted` are the places whose logits are wanted: of a row that reaches its sequence's end, its last token, and with it
those of its drafts; of a row that does not, none. `pooled` are those whose hidden states are wanted instead, of rows
that come to a vector: all tokens of a mean, the sequence's last of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from weir_executor.paged.batch import Scheduled
from weir_executor.paged.sequence import Sequence as LiveSequence


class Row(Protocol):
    """What a device must know of a row: `count` tokens from `first`, and the blocks that hold their sequence."""

    @property
    def first(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def blocks(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """`token_ids` and `positions` are of all rows, row after row; the other lists hold places in them, ascending."""

    rows: Sequence[Scheduled]
    token_ids: list[int]
    positions: list[int]
    ends: list[int]  # each row's last token
    wanted: list[int]  # where logits are wanted
    best_only: bool  # of the logits, nobody needs more than which is highest
    pooled: list[int]  # where hidden states are wanted
    plain: bool = False  # nobody needs the logits but to draw from them as they come


def flatten(scheduled: Sequence[Scheduled]) -> FlatBatch:
    """The batch in row order."""
    return side_by_side(in_row_order(scheduled))


def side_by_side(rows: Sequence[Scheduled]) -> FlatBatch:
    """The batch in the order of `rows`, single tokens first."""
    token_ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    wanted: list[int] = []
    pooled: list[int] = []
    for row in rows:
        token_ids += row.token_ids
        positions += range(row.first, row.first + row.count)
        ends.append(len(token_ids) - 1)
        wanted += range(len(token_ids) - row.num_wanted, len(token_ids))
        pooled += range(len(token_ids) - row.num_pooled, len(token_ids))
    sampling = [row.sequence for row in rows if row.samples]
    plain = all(map(_is_plain, sampling))
    best_only = plain and all(sequence.sampling.temperature == 0.0 for sequence in sampling)
    return FlatBatch(rows, token_ids, positions, ends, wanted, best_only, pooled, plain)


def _is_plain(sequence: LiveSequence) -> bool:
    return sequence.sampling.is_plain and sequence.guide is None and not sequence.forbidden_token_ids()


def in_row_order(scheduled: Sequence[Scheduled]) -> list[Scheduled]:
    """Single tokens first: those that begin with the same block side by side, and shorter before longer, so that what
    is read together is shared or of like length."""
    decodes = [s for s in scheduled if s.count == 1]
    beginnings = Counter(s.sequence.blocks[0] for s in decodes)

    def order(row: Scheduled) -> tuple[int, int]:
        beginning = row.sequence.blocks[0]
        return (beginning if beginnings[beginning] > 1 else -1, row.first)

    return sorted(decodes, key=order) + [s for s in scheduled if s.count > 1]


def num_blocks(row: Row, block_size: int) -> int:
    """How many blocks hold what the row attends to; its sequence may own more, for tokens of later chunks."""
    return -(-(row.first + row.count) // block_size)


def slots(rows: Sequence[Row], block_size: int) -> Iterator[int]:
    """Where each token of the step is written, row after row: block_id * block_size + offset."""
    for row in rows:
        first, end = row.first, row.first + row.count
        for index in range(first // block_size, num_blocks(row, block_size)):
            base = (row.blocks[index] - index) * block_size
            yield from range(base + max(first, index * block_size), base + min(end, (index + 1) * block_size))
