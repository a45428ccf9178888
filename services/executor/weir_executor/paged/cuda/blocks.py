"""Blocks to and from a CUDA device through pinned memory, beside the steps and not between them.

    read     side stream      gather all blocks ─▶ one copy to pinned memory ─▶ bytes
    write    side stream      bytes ─▶ pinned memory ─▶ layer by layer, beside the step that needs it: `arrivals`

What is read is full and was computed by a step that has ended, so the side stream waits for nothing: the step that is
under way by then writes other blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.cuda.arrivals import Arrivals
from weir_executor.paged.kv_cache import KvCache

# Blocks read at once: bounds the copies' memory, on either side, whatever a long prompt fills in one step.
_MOST_AT_ONCE = 64


class CudaBlocks:
    """See `KvBlocks`: those of `cache`. Used by the step thread only."""

    reads_anywhere = False

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._on_cuda = cache.device.type == "cuda"
        self._stream = torch.cuda.Stream(cache.device) if self._on_cuda else None  # type: ignore[no-untyped-call]
        self._arrivals = Arrivals(cache, self._stream)

    @property
    def block_bytes(self) -> int:
        return self._cache.block_bytes

    def read_blocks(self, block_ids: Sequence[int]) -> list[bytes]:
        payloads: list[bytes] = []
        for begin in range(0, len(block_ids), _MOST_AT_ONCE):
            payloads += self._read(block_ids[begin : begin + _MOST_AT_ONCE])
        return payloads

    def write_blocks(self, loads: Sequence[BlockLoad]) -> None:
        """Each into a block of its own."""
        self._arrivals.begin(loads)

    def is_sound(self, payload: bytes | memoryview) -> bool:
        return self._cache.is_sound(payload)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        self._arrivals.settle()
        self._cache.clear_blocks(block_ids)

    def _read(self, block_ids: Sequence[int]) -> list[bytes]:
        with torch.cuda.stream(self._stream):
            gathered = self._cache.gather_blocks(block_ids)
            on_host = torch.empty(gathered.shape, dtype=gathered.dtype, pin_memory=self._on_cuda)
            on_host.copy_(gathered, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        return [block.view(torch.uint8).numpy().tobytes() for block in on_host.flatten(1)]
