"""What the device can do, measured on the spot, and the least time in which it could do a step.

decode      (weights once, and the KV of every row's context) ÷ bandwidth, or the products ÷ rate, whichever is more
prefill     (the products of every token, and attention's) ÷ rate
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.gpu.shape import Shape

_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Roofline:
    bytes_per_second: float  # copied, read and written bytes both counted
    flops_per_second: float  # of one large product in the model's dtype

    def decode_seconds(self, shape: Shape, batch: int, context: float) -> float:
        """Of one step: a token for each of `batch` rows that see `context` tokens on average."""
        moved = shape.matrix_parameters * shape.dtype.itemsize + batch * context * shape.kv_bytes_per_token
        multiplied = 2 * shape.matrix_parameters * batch + batch * _attention_flops(shape, context)
        return max(moved / self.bytes_per_second, multiplied / self.flops_per_second)

    def prefill_seconds(self, shape: Shape, lengths: Sequence[int]) -> float:
        """Of prompts from nothing. Only their last tokens pass the output projection, which is left out."""
        multiplied = 0.0
        for length in lengths:
            multiplied += 2 * shape.layers * shape.layer_parameters * length
            multiplied += length * _attention_flops(shape, (length + 1) / 2)
        return multiplied / self.flops_per_second


def measure(device: torch.device, dtype: torch.dtype, copied_bytes: int = 1 << 30, side: int = 8192) -> Roofline:
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    copying = seconds(lambda: target.copy_(source), device)
    multiplying = seconds(lambda: left @ right, device)
    return Roofline(2 * copied_bytes / copying, 2 * side**3 / multiplying)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one run: the mean of several, after two that warm up."""
    for _ in range(2):
        run()
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        run()
    _synchronize(device)
    return (time.perf_counter() - began) / _ROUNDS


def _attention_flops(shape: Shape, context: float) -> float:
    """Of one token: scores and weighted values, in all layers."""
    return 4 * shape.layers * shape.heads * shape.head_dim * context


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
