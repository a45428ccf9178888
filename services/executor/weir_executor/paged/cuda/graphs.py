"""Captured work: what takes hundreds of launches once takes one ever after.

capture(run) ─▶ (replay, what `run` returned)      the returned tensors are written again by every replay
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

_SMALL_SIZES = (1, 2, 4)
_LEAST_STEP, _MOST_STEP = 8, 128


class Capturer(Protocol):
    """Records work on a device. The work reads and writes the same memory in each replay, and nobody else's."""

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Run once to warm up, then record. Raises what `run` raises, and when it cannot be recorded."""


class CudaGraphs:
    """CUDA graphs. All of one object share a memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        # Kernels are compiled and libraries make their handles in the warm-up: neither can be recorded.
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        if self._pool is None:
            self._pool = graph.pool()
        return graph.replay, output


def batch_sizes(most: int) -> list[int]:
    """The sizes that batches are padded to, rising: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, …, and `most`."""
    sizes, size = [size for size in _SMALL_SIZES if size < most], _LEAST_STEP
    while size < most:
        sizes.append(size)
        # Half of the power of two below: at most a third of a batch beyond the smallest is padding.
        size += max(_LEAST_STEP, min(_MOST_STEP, (1 << size.bit_length()) // 4 if size >= 32 else 0))
    return [*sizes, most]


def size_for(sizes: Sequence[int], count: int) -> int:
    """The least of the rising `sizes` that holds so many rows."""
    return next(size for size in sizes if size >= count)
