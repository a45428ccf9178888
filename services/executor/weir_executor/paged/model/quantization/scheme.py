"""The seam for checkpoints that keep their weights narrow.

A scheme turns what a checkpoint holds of one linear layer into an ordinary weight, while the model is loaded. What is
served has the engine's dtype: a quantized checkpoint is smaller on disk here, not in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch


class StoredTensors(Protocol):
    """A checkpoint as a scheme sees it: by name, as stored."""

    def __contains__(self, name: str) -> bool: ...

    def stored(
        self, name: str, *, dtypes: Sequence[torch.dtype] = (), shapes: Sequence[tuple[int, ...]] = ()
    ) -> torch.Tensor:
        """One tensor, of one of these types and shapes where any are given. Raises `ModelLoadError` naming it."""

    def wrong(self, name: str, problem: str) -> Exception:
        """The `ModelLoadError` to raise: it names the file too."""


class WeightScheme(Protocol):
    def holder(self, tensors: StoredTensors, module: str) -> str | None:
        """The tensor that holds this linear layer's numbers; None when its weight is kept as usual, as that of the last
        layer or of a router always is."""

    def dequantize(self, tensors: StoredTensors, module: str) -> torch.Tensor:
        """The weight, [rows (outputs), columns (inputs)] in float32; of a module that has a holder."""


FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # of scales


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[…, words] int32 → […, words · 32 / bits] int32: unsigned numbers, the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    numbers: torch.Tensor = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.flatten(-2)


def spread(blocks: torch.Tensor, block: tuple[int, int], rows: int, columns: int) -> torch.Tensor:
    """One number per block → one per place, [rows, columns]. Blocks at the far edges may be cut."""
    tall = blocks.repeat_interleave(block[0], dim=0)[:rows]
    return tall.repeat_interleave(block[1], dim=1)[:, :columns]


def is_named(module: str, names: Sequence[str]) -> bool:
    """Whether a list such as `modules_to_not_convert` means this module: by the end of its name, or by a beginning that
    stops at a dot, or by a pattern for one. The rules are those of transformers 5.23."""
    return any(module.endswith(name) or re.match(rf"(?:{name})(?:(?<=\.)|(?=\.|$))", module) for name in names)
