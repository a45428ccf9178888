"""What computes on a CUDA device: our kernels and captured graphs, or PyTorch's operations where they fail."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass

import torch

from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.cuda.blocks import CudaBlocks
from weir_executor.paged.decoder import Decoder, KvBlocks, TorchDecoder
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.decoder_model import DecoderModel
from weir_executor.paged.model.registry import load_model
from weir_executor.paged.workload import Workload

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CudaCompute:
    decoder: Decoder
    blocks: KvBlocks
    looks_ahead: bool  # see `Compute`


def load_cuda(workload: Workload, device: torch.device) -> CudaCompute:
    """Load the weights and allocate the cache. Raises `ModelLoadError`."""
    model = load_model(workload.model_dir, workload.model, workload.max_model_len, workload.dtype, device)
    cache = KvCache(workload.model, workload.num_blocks, workload.block_size, workload.dtype, device)
    try:
        decoder = _by_kernels(workload, model, cache)
    except Exception as error:
        _log.warning("attention by PyTorch's operations, which is slower: %s: %s", type(error).__name__, error)
        plain = TorchDecoder(model, TorchAttention(cache, workload.model.attention), device)
        return CudaCompute(plain, CudaBlocks(cache), looks_ahead=False)
    _log.info("attention by our Triton kernels, decode steps by CUDA graphs")
    return CudaCompute(decoder, CudaBlocks(cache), looks_ahead=True)


def _by_kernels(workload: Workload, model: DecoderModel, cache: KvCache) -> Decoder:
    """Raises what keeps the kernels from working here."""
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError("triton is not installed")
    # Everything behind this import needs Triton.
    from weir_executor.paged.cuda.build import build_decoder  # noqa: PLC0415
    from weir_executor.paged.cuda.graphs import CudaGraphs  # noqa: PLC0415

    return build_decoder(workload, model, cache, CudaGraphs())
