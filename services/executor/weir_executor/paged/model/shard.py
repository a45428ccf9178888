"""The part of a model that one rank holds; the whole, unless ranks share it.

Shoeybi et al., "Megatron-LM" (arXiv 1909.08053): projections into heads or features are split by their output rows,
those out of them by their input columns, and the ranks' results of the second kind are summed.

    hidden ─▶ qkv, gate and up: some rows ─▶ some heads, some features ─▶ output, down: some columns ─▶ Σ over ranks
"""

from __future__ import annotations

import torch

from weir_executor.paged.model.layers import Linear


class Shard:
    """All of it. `paged/parallel/` has the one that is a part."""

    holds_embedding = True
    holds_lm_head = True
    adds_bias = True  # where results are summed, one rank adds the bias

    def stored_name(self, name: str) -> str:
        """Of a tensor, in the checkpoint: a later stage of a pipeline counts its layers from 0."""
        return name

    def part_of(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        """This rank's part of a stored tensor; None when `shape` is no part of it."""
        return tensor if tuple(tensor.shape) == shape else None

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Over the ranks that each have a part of a result."""
        return part

    def summed(self, linear: Linear) -> Linear:
        """A projection whose input is spread over ranks."""
        return linear

    def vocabulary(self, vocab_size: int) -> slice:
        """The rows of the output head that this rank multiplies with."""
        return slice(0, vocab_size)

    def gathered(self, linear: Linear, vocab_size: int) -> Linear:
        """The output head, whose rows are spread over ranks as `vocabulary` says."""
        assert self.vocabulary(vocab_size) == slice(0, vocab_size)
        return linear


WHOLE = Shard()
