"""A decoder that says, before each step, which of its tokens pass through which adapter; and the adapters' own memory.

Loading and unloading come from other threads than the step's: a name is put into the table or taken out of it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from weir_chassis.errors import AlreadyExists, InvalidArgument
from weir_executor.adapters.config import AdapterConfig
from weir_executor.adapters.files import Note, read_weights
from weir_executor.engine import AdapterInfo
from weir_executor.paged.decoder import Decoded, Decoder
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.lora.layers import AdaptedTokens, Sites
from weir_executor.paged.lora.weights import LoraWeights, load_weights, most_bytes


class LoadedAdapters:
    """See `Adapters` in `paged/adapters.py`. The weights are in the engine's dtype and on its device."""

    def __init__(self, sites: Sites, max_rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self._sites, self._max_rank, self._dtype, self._device = sites.sites, max_rank, dtype, device
        self._by_name: dict[str, LoraWeights] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def load(self, name: str, directory: Path, config: AdapterConfig, note: Note) -> AdapterInfo:
        if name in self._by_name:
            raise AlreadyExists(name, f"an adapter {name!r} is loaded")
        if config.rank > self._max_rank:
            raise InvalidArgument("directory", f"rank {config.rank}; at most {self._max_rank} here")
        data, fingerprint = read_weights(directory, most_bytes(self._sites, self._max_rank), note)
        with torch.inference_mode():
            weights = load_weights(data, config, self._sites, self._dtype, self._device)
        note(len(data), len(data))  # the last chance to be told that nobody wants it any more
        self._by_name[name] = self._keep(weights)
        return AdapterInfo(name, config.rank, fingerprint, weights.num_bytes)

    def unload(self, name: str) -> None:
        del self._by_name[name]

    def _keep(self, weights: LoraWeights) -> LoraWeights:
        """As whoever computes wants them."""
        return weights

    def tokens_of(self, batch: FlatBatch) -> Sequence[AdaptedTokens]:
        """Of the rows that have an adapter, side by side for each."""
        places: dict[str, list[int]] = {}
        for row, end in zip(batch.rows, batch.ends, strict=True):
            if row.adapter:
                places.setdefault(row.adapter, []).extend(range(end + 1 - row.count, end + 1))
        return [
            AdaptedTokens(self._by_name[name].pairs, torch.tensor(own, dtype=torch.int64, device=self._device))
            for name, own in places.items()
        ]


class AdapterDecoder:
    """See `Decoder`. Around one whose model was loaded with `sites`."""

    def __init__(self, decoder: Decoder, adapters: LoadedAdapters, sites: Sites) -> None:
        self._decoder, self._adapters, self._active = decoder, adapters, sites.active

    def decode(self, batch: FlatBatch) -> Decoded:
        self._active.now = self._adapters.tokens_of(batch)
        try:
            return self._decoder.decode(batch)
        finally:
            self._active.now = ()
