"""The CUDA decoder's parts put together, and the proof that its attention computes what PyTorch's does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.cuda.attention import TritonAttention, max_numbers
from weir_executor.paged.cuda.current import made_current
from weir_executor.paged.cuda.decode_step import DecodeSteps
from weir_executor.paged.cuda.decoder import CudaDecoder
from weir_executor.paged.cuda.graphs import Capturer
from weir_executor.paged.cuda.llama import fused
from weir_executor.paged.decoder import TorchDecoder
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.decoder_model import DecoderModel
from weir_executor.paged.workload import Workload

# Of values near one: what rounding scores and weights to a narrow dtype may come to.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class KernelsDisagreeError(RuntimeError):
    """Our attention does not compute here what PyTorch's operations do."""


def build_decoder(workload: Workload, model: DecoderModel, cache: KvCache, capturer: Capturer | None) -> CudaDecoder:
    """Raises `KernelsDisagreeError`, and whatever the kernels raise when they are compiled or launched."""
    max_blocks = -(-workload.max_model_len // workload.block_size)
    numbers = max_numbers(workload.max_batched_tokens, workload.max_num_seqs, max_blocks)
    attention = TritonAttention(cache, workload.model.num_heads, workload.model.attention, numbers)
    with made_current(cache.device):
        check_attention(attention, workload.model, cache)
    model = fused(model, attention)
    steps = DecodeSteps(model, attention, workload.max_num_seqs, max_blocks, capturer)
    eager = TorchDecoder(model, attention, cache.device)
    return CudaDecoder(steps, eager, cache.block_size, cache.device)


@dataclass(frozen=True, slots=True)
class _Row:
    first: int
    count: int
    blocks: list[int]


def check_attention(attention: TritonAttention, config: ModelConfig, cache: KvCache) -> None:
    """A chunk and a decode in the cache's first block, by each way of scoring that the model has."""
    plain = TorchAttention(cache, config.attention)
    layers = {scoring: layer for layer, scoring in enumerate(config.attention)}.values()
    generator = torch.Generator().manual_seed(0)
    last = cache.block_size - 1
    for row in (_Row(0, last, [0]), _Row(last, 1, [0])):
        if not row.count:
            continue  # a block of one token holds no chunk
        parts = [
            torch.randn((row.count, heads, cache.head_dim), generator=generator).to(cache.device, cache.dtype)
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ]
        for backend in (attention, plain):
            backend.plan([row])
        for layer in layers:
            found, expected = (backend.attend(layer, *parts) for backend in (attention, plain))
            difference = (found.float() - expected.float()).abs().max().item()
            # A difference that is no number is none that is small.
            if not difference <= _TOLERANCE[cache.dtype]:
                raise KernelsDisagreeError(f"layer {layer}: attention differs by {difference:g}")
    cache.clear_blocks([0])
