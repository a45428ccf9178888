"""What the kernels are told of a step, as lists of whole numbers. Pure: no torch.

slots      per token       block_id * block_size + offset; below 0: padding, written nowhere
rows       4 per row       first token, queries, length, where its block ids begin
few, many  2 per tile      row, first query: rows with few queries lead and are cut into tiles of their own
block_ids  row after row   the blocks that hold what a row attends to
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir_executor.paged.flat_batch import Row, num_blocks, slots

NOWHERE = -1


@dataclass(slots=True)
class Tables:
    slots: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    few: list[int] = field(default_factory=list)
    many: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    few_tokens: int = 0  # tokens of the leading rows with few queries

    @property
    def num_rows(self) -> int:
        return len(self.rows) // 4

    def pad_to(self, num_rows: int) -> None:
        """Add rows of one token that is written nowhere and attends to nothing, to a step of single tokens."""
        assert len(self.slots) == self.num_rows == self.few_tokens, "only single tokens can be padded"
        for row in range(self.num_rows, num_rows):
            self.slots.append(NOWHERE)
            self.rows += (row, 1, 0, 0)
            self.few += (row, 0)
        self.few_tokens = num_rows


def tables(rows: Sequence[Row], block_size: int, few_queries: int, many_queries: int) -> Tables:
    """Of a step's rows in their order. A tile holds at most so many queries of one row."""
    told, leading, first_token = Tables(slots=list(slots(rows, block_size))), True, 0
    for index, row in enumerate(rows):
        told.rows += (first_token, row.count, row.first + row.count, len(told.block_ids))
        told.block_ids += row.blocks[: num_blocks(row, block_size)]
        first_token += row.count
        leading = leading and row.count <= few_queries
        if leading:
            told.few += (index, 0)
            told.few_tokens += row.count
        else:
            for query in range(0, row.count, many_queries):
                told.many += (index, query)
    return told
