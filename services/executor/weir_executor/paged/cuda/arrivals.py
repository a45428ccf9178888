"""Stored blocks on their way to the device, layer by layer, beside the step that reads them.

    side stream     layer 0 ─▶ │ layer 1 ─▶ │ layer 2 ─▶ │ …
    steps' stream          wait 0, compute 0 │ wait 1, compute 1 │ wait 2, …

A step waits for one layer of what it loads and not for all of it: while it computes that layer the next ones arrive.
The host waits for neither. Layer-wise pre-loading, as in AttentionStore (https://arxiv.org/abs/2403.19708).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.kv_cache import KvCache


class Arrivals:
    """Into `cache`, which asks for a layer before it is touched. Used by the step thread only."""

    def __init__(self, cache: KvCache, stream: torch.cuda.Stream | None) -> None:
        """Without a stream everything has arrived when `begin` returns."""
        self._cache, self._stream = cache, stream
        self._sent: dict[int, torch.cuda.Event | None] = {}  # by layer, until somebody has waited for it
        cache.before_layer = self.wait

    def begin(self, loads: Sequence[BlockLoad]) -> None:
        """Returns when everything is in pinned memory, and on its way."""
        self.settle()  # what was not waited for has the same blocks' earlier owners
        on_host = self._staged(loads)
        if self._stream is not None:
            # Steps under way may write to blocks that have been given to others since.
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            where = torch.tensor([load.block_id for load in loads]).to(self._cache.device, non_blocking=True)
        for layer, blocks in enumerate(on_host):
            self._send(layer, partial(self._cache.put_layer, layer, where, blocks))

    def wait(self, layer: int) -> None:
        """What is queued from now on sees the layer with all that was sent."""
        arrived = self._sent.pop(layer, None) if self._sent else None
        if arrived is not None:
            torch.cuda.current_stream().wait_event(arrived)

    def settle(self) -> None:
        """The same for all layers."""
        for layer in list(self._sent):
            self.wait(layer)

    def _send(self, layer: int, copy: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream):
            copy()
        self._sent[layer] = None if self._stream is None else self._stream.record_event()

    def _staged(self, loads: Sequence[BlockLoad]) -> torch.Tensor:
        """[layers, 2, blocks, kv_heads, block_size, head_dim]; the allocator keeps it until the copies are done."""
        layers, parts, *inside = self._cache.block_shape
        shape = (layers, parts, len(loads), *inside)
        staged = torch.empty(shape, dtype=self._cache.dtype, pin_memory=self._stream is not None)
        for index, load in enumerate(loads):
            staged[:, :, index].copy_(self._cache.from_bytes(load.payload))
        return staged
