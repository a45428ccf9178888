"""Adapters as the native kernels take them: B in the panels of the weights it is added to, A in whole vectors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.lora.decoder import LoadedAdapters
from weir_executor.paged.lora.layers import Pair, Sites
from weir_executor.paged.lora.weights import LoraWeights
from weir_executor.paged.model.layers import Linear
from weir_executor.paged.native.binding import PANEL, Adapter

# The order of a layer's sites in `native/src/kernels/adapters.h`, by the first of the modules that are stacked in each.
_SITES = (("q_proj", "qkv_proj"), ("o_proj",), ("gate_proj", "gate_up_proj"), ("down_proj",))
_GATED, _VECTOR = 2, 16


class NativeSites(Sites):
    """Only says where adapters may go: the model's projections stay as they are, for they are packed and not called."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []  # of each site, among all layers' in the kernels' order

    def wrap(self, linear: Linear, names: Sequence[str], rows: Sequence[int], columns: int) -> Linear:
        if super().wrap(linear, names, rows, columns) is not linear:
            layer, module = len(self.places) // len(_SITES), names[0].rpartition(".")[2]
            kind = next(place for place, modules in enumerate(_SITES) if module in modules)
            self.places.append(layer * len(_SITES) + kind)
        return linear


@dataclass(frozen=True, slots=True)
class PackedAdapter(LoraWeights):
    tensors: Sequence[torch.Tensor] = field(repr=False)  # what `struct` points to
    struct: Adapter = field(repr=False)
    most_rank: int


class NativeAdapters(LoadedAdapters):
    """See `LoadedAdapters`."""

    def __init__(self, sites: NativeSites, max_rank: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(sites, max_rank, dtype, device)
        self._places = sites.places
        assert sorted(self._places) == list(range(len(self._places))), "a layer has four sites, loaded together"

    def used_by(self, batch: FlatBatch) -> tuple[list[PackedAdapter], list[int]]:
        """The adapters in a step, and which of them each token has; -1 where none."""
        names = sorted({row.adapter for row in batch.rows if row.adapter})
        index = {"": -1, **{name: place for place, name in enumerate(names)}}
        used = [self._by_name[name] for name in names]
        tokens = [index[row.adapter] for row in batch.rows for _ in range(row.count)] if names else []
        return [packed for packed in used if isinstance(packed, PackedAdapter)], tokens

    def _keep(self, weights: LoraWeights) -> LoraWeights:
        by_place = dict(zip(self._places, weights.pairs, strict=True))
        return _pack([by_place[place] for place in range(len(by_place))])


def _pack(pairs: Sequence[Pair | None]) -> PackedAdapter:
    down, up = [], []
    for place, pair in enumerate(pairs):
        down.append(_empty() if pair is None else _whole_vectors(pair.down.float()))
        up.append(_empty() if pair is None else _panels(pair.up.float(), gated=place % len(_SITES) == _GATED))
    ranks = [_rank(pair) for pair in pairs]
    pointers = ctypes.c_void_p * len(ranks)
    struct = Adapter(
        pointers(*(tensor.data_ptr() for tensor in down)),
        pointers(*(tensor.data_ptr() for tensor in up)),
        (ctypes.c_int32 * len(ranks))(*ranks),
    )
    return PackedAdapter((), [*down, *up], struct, max(ranks))


def _rank(pair: Pair | None) -> int:
    return 0 if pair is None else len(pair.down)


def _empty() -> torch.Tensor:
    return torch.empty(0)


def _whole_vectors(down: torch.Tensor) -> torch.Tensor:
    return functional.pad(down, (0, -down.shape[1] % _VECTOR)).contiguous()


def _panels(up: torch.Tensor, *, gated: bool) -> torch.Tensor:
    """[outputs, rank] → [panels, rank, PANEL]; of a gated site half of each panel are gates, half ups."""
    parts = up.chunk(2) if gated else (up,)
    width = PANEL // len(parts)
    filled = [functional.pad(part, (0, 0, 0, -len(part) % width)).view(-1, width, up.shape[1]) for part in parts]
    return torch.cat(filled, dim=1).transpose(1, 2).contiguous()
