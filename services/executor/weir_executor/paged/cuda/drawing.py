"""Draws on the device: which rows it can draw for, what the kernel is told of them, and its launch."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from weir_executor.paged.cuda.kernels import draw as kernels
from weir_executor.request import Sampling

ASKED = 8  # numbers per row
_TILE = 4096  # logits that a program looks at at once


@dataclass(frozen=True, slots=True)
class Asked:
    """How one row's token is drawn: `sampling`, and where the token will stand."""

    sampling: Sampling
    output_index: int
    position: int


def asked_numbers(rows: Iterable[Asked]) -> list[int]:
    """[rows, 8] int32, as `kernels.draw` reads them."""
    numbers: list[int] = []
    for row in rows:
        sampling = row.sampling
        floats = struct.pack("<3f", sampling.temperature, sampling.top_p, sampling.min_p)
        seed = struct.pack("<Q", sampling.seed & 0xFFFFFFFFFFFFFFFF)
        numbers += struct.unpack("<3i", floats)
        numbers.append(sampling.top_k)
        numbers += struct.unpack("<2i", seed)
        numbers += (row.output_index, row.position)
    return numbers


GREEDY: Sequence[int] = asked_numbers([Asked(Sampling(temperature=0.0), 0, 0)])


def draw(logits: torch.Tensor, asked: torch.Tensor, drawn: torch.Tensor) -> None:
    """One token for each row of `logits` [rows, vocabulary] float32 into `drawn` [rows] int32; -1: not finite."""
    tile = min(_TILE, 1 << (logits.shape[1] - 1).bit_length())
    kernels.draw[(logits.shape[0],)](
        logits, asked, drawn, logits.shape[1], logits.stride(0), TILE=tile, num_warps=8
    )  # fmt: skip
