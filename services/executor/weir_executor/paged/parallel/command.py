"""What rank 0 tells the others between steps, over a pipe of its own to each. They answer what asks for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.flat_batch import FlatBatch, Row
from weir_executor.paged.parallel.group import Meeting
from weir_executor.paged.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class RankConfig:
    """What a rank loads. Of its own: `rank`; the same for all: the rest."""

    rank: int
    layout: Layout
    meeting: Meeting
    model_dir: Path
    device: str
    dtype: str
    block_size: int
    num_blocks: int
    max_model_len: int
    num_threads: int | None

    def at_port(self, port: int) -> RankConfig:
        """Where the others find rank 0, once it listens."""
        return replace(self, meeting=replace(self.meeting, port=port))


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank's first word: its weights are loaded."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A rank's first and last word: what is wrong with its files or its device."""

    error: str


@dataclass(frozen=True, slots=True)
class SentRow:
    """A `Row` without its sequence."""

    first: int
    count: int
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class RunStep:
    """A `FlatBatch` without its sequences."""

    rows: Sequence[Row]
    token_ids: list[int] = field(repr=False)
    positions: list[int]
    ends: list[int]
    wanted: list[int]
    pooled: list[int]

    @classmethod
    def of(cls, batch: FlatBatch) -> RunStep:
        rows = [SentRow(row.first, row.count, list(row.blocks)) for row in batch.rows]
        return cls(rows, batch.token_ids, batch.positions, batch.ends, batch.wanted, batch.pooled)


@dataclass(frozen=True, slots=True)
class ReadBlocks:
    """Answered with the rank's part of each block's payload."""

    block_ids: list[int]


@dataclass(frozen=True, slots=True)
class WriteBlock:
    load: BlockLoad = field(repr=False)  # the rank's part


@dataclass(frozen=True, slots=True)
class ClearBlocks:
    block_ids: list[int]


@dataclass(frozen=True, slots=True)
class Stop:
    """The last command."""


Command = RunStep | ReadBlocks | WriteBlock | ClearBlocks | Stop
