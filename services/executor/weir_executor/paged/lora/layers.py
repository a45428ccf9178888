"""Where a model's projections take adapters in: y = W x, plus scale · B A x for the tokens of rows that have one.

    x ──▶ W ─────────────▶ + ─▶ y        tokens without an adapter: this line only
     └─▶ tokens of one ─▶ A ─▶ B ─┘      once for each adapter in the step that changes this projection

Which tokens go through which adapter is the same for all layers, so it is said once per step (`ActiveAdapters`). A step
without adapters costs one look at an empty tuple per projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weir_executor.paged.model.layers import Linear

# The projections that PEFT's targets name, in families that keep them apart and in those that fuse them. Experts see
# other rows than the step's, so theirs are left out.
_APART = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ADAPTED = frozenset((*_APART, "qkv_proj", "gate_up_proj"))
_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter's part in one projection. `down`: [ranks, in]; `up`: [out, ranks], the scale in it."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, slots=True)
class AdaptedTokens:
    """An adapter in a step: its pairs by site, and the places of its tokens, [tokens] in int64."""

    pairs: Sequence[Pair | None]
    places: torch.Tensor


@dataclass(slots=True)
class ActiveAdapters:
    """What is in the step that is being computed. The decoder says so before each step."""

    now: Sequence[AdaptedTokens] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """One projection of the model: the modules that are stacked in it, with the output rows of each."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int


class AdaptedLinear:
    def __init__(self, base: Linear, site: int, active: ActiveAdapters) -> None:
        self._base, self._site, self._active = base, site, active

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._base(x)
        for adapted in self._active.now:
            pair = adapted.pairs[self._site]
            if pair is not None:
                own = x.index_select(0, adapted.places)
                y.index_add_(0, adapted.places, own @ pair.down.T @ pair.up.T)
        return y


class Sites:
    """A model's projections that adapters may change, collected while it is loaded."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.active = ActiveAdapters()

    def wrap(self, linear: Linear, names: Sequence[str], rows: Sequence[int], columns: int) -> Linear:
        """What `load_linear` made of these modules, as the model is to call it."""
        if any(name.rpartition(".")[2] not in _ADAPTED or _EXPERTS in name for name in names):
            return linear
        self.sites.append(Site(tuple(names), tuple(rows), columns))
        return AdaptedLinear(linear, len(self.sites) - 1, self.active)
