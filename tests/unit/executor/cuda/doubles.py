"""A capturer for machines without CUDA: replays work by doing it again, into the memory it was recorded with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from weir_executor.paged.compute import Compute
from weir_executor.paged.cuda.blocks import CudaBlocks
from weir_executor.paged.cuda.build import build_decoder
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_model
from weir_executor.paged.workload import Workload


class CapturerDouble:
    """As a device does it: what a capture returned is overwritten by each replay, and Python runs only to record."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.captures = 0
        self.replays: list[int] = []  # the rows of each
        self._fails_at = fails_at

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        if self.captures == self._fails_at:
            raise RuntimeError("this cannot be recorded")
        self.captures += 1
        output = run()

        def replay() -> None:
            self.replays.append(len(output))
            output.copy_(run())

        return replay, output


def compute_by_kernels(workload: Workload, device: torch.device) -> Compute:
    """What a CUDA device computes with, on a machine that has none, and uncaptured: recording takes steps."""
    model = load_model(workload.model_dir, workload.model, workload.max_model_len, workload.dtype, device)
    cache = KvCache(workload.model, workload.num_blocks, workload.block_size, workload.dtype, device)
    return Compute(
        build_decoder(workload, model, cache, None), CudaBlocks(cache), lambda: None, "triton", looks_ahead=True
    )
