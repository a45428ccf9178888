"""Hidden states → one vector per sequence that pools.

What a mean has come to so far stays with its sequence (`Sequence.pooled`), in float32, from one prefill chunk to the
next; it goes when the sequence gives its blocks back, and the next computation begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from weir_executor.paged.batch import Scheduled
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.worker import Vector
from weir_executor.request import PoolingKind


def pool(rows: Sequence[Scheduled], hidden: torch.Tensor) -> dict[int, Vector]:
    """The vectors of rows that reach their sequence's end, by the row's index.

    `hidden`: [pooled, hidden_size] in float32, `num_pooled` of each row, in row order.
    """
    pooling = [index for index, row in enumerate(rows) if row.num_pooled]
    parts = torch.split(hidden, [rows[index].num_pooled for index in pooling])
    ended = [index for index, part in zip(pooling, parts, strict=True) if _take(rows[index], part)]
    if not ended:
        return {}
    vectors = torch.stack([_vector(rows[index].sequence) for index in ended]).tolist()
    return {index: Vector(values) for index, values in zip(ended, vectors, strict=True)}


def _take(row: Scheduled, part: torch.Tensor) -> bool:
    """Add the hidden states of one row to its sequence's. True when they are the last."""
    total, sequence = part.sum(dim=0), row.sequence
    if isinstance(sequence.pooled, torch.Tensor):
        total += sequence.pooled
    sequence.pooled = total
    return row.reaches_end


def _vector(sequence: LiveSequence) -> torch.Tensor:
    total, pooling = sequence.pooled, sequence.pooling
    assert isinstance(total, torch.Tensor), sequence
    assert pooling is not None, sequence
    vector = total / len(sequence.token_ids) if pooling.kind is PoolingKind.MEAN else total
    return functional.normalize(vector, dim=0) if pooling.normalize else vector
