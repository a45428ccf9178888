"""One rank's `Shard`: which rows and columns of stored tensors are its own, and how its results join the others'."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from weir_executor.paged.model.layers import Linear
from weir_executor.paged.model.shard import Shard
from weir_executor.paged.parallel.group import Ranks
from weir_executor.paged.parallel.layout import Layout, Place

_LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # the first number in "model.layers.7.mlp.up_proj.weight"


class Part(Shard):
    def __init__(self, layout: Layout, place: Place, ranks: Ranks) -> None:
        self._layout, self._place, self._ranks = layout, place, ranks
        self.holds_embedding = place.stage == 0
        self.holds_lm_head = place.stage == layout.last_stage
        self.adds_bias = place.part == 0

    def stored_name(self, name: str) -> str:
        return _LAYER.sub(lambda index: str(int(index[0]) + self._place.first_layer), name, count=1)

    def part_of(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A tensor is whole on every rank, or spread along the one axis on which it is as often too long."""
        spread = [axis for axis, size in enumerate(shape) if axis < tensor.dim() and tensor.shape[axis] != size]
        if tensor.dim() != len(shape) or len(spread) > 1:
            return None
        if not spread:
            return tensor
        size = shape[spread[0]]
        if tensor.shape[spread[0]] != size * self._layout.tensor:
            return None
        return tensor.narrow(spread[0], size * self._place.part, size)

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        return self._ranks.sum(part)

    def summed(self, linear: Linear) -> Linear:
        return Summed(linear, self._ranks) if self._layout.tensor > 1 else linear

    def vocabulary(self, vocab_size: int) -> slice:
        """An even share; where the vocabulary has none, every rank multiplies with all of it."""
        if vocab_size % self._layout.tensor:
            return slice(0, vocab_size)
        size = vocab_size // self._layout.tensor
        return slice(size * self._place.part, size * (self._place.part + 1))

    def gathered(self, linear: Linear, vocab_size: int) -> Linear:
        is_spread = self._layout.tensor > 1 and vocab_size % self._layout.tensor == 0
        return Gathered(linear, self._ranks) if is_spread else linear


@dataclass(frozen=True, slots=True)
class Summed:
    part: Linear
    ranks: Ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.sum(self.part(x))


@dataclass(frozen=True, slots=True)
class Gathered:
    part: Linear
    ranks: Ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.gather(self.part(x))
