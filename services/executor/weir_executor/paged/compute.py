"""How this process computes a model: on one device, or as the first of several ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from weir_executor.paged.adapters import Adapters, NoAdapters
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.cuda.load import load_cuda
from weir_executor.paged.decoder import Decoder, KvBlocks, TorchDecoder
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.lora.decoder import AdapterDecoder, LoadedAdapters
from weir_executor.paged.lora.layers import Sites
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.registry import FAMILIES, load_model
from weir_executor.paged.model.weights import Wrap, as_it_is
from weir_executor.paged.native.load import load_native
from weir_executor.paged.parallel.command import RankConfig
from weir_executor.paged.parallel.decoder import load_parallel
from weir_executor.paged.parallel.group import Meeting
from weir_executor.paged.parallel.layout import Layout, check_layout
from weir_executor.paged.workload import Workload

_log = logging.getLogger(__name__)
# Ranks of one engine are processes of one host. Between hosts TensorRT-LLM's own runtime is what to use.
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where. `device` is the first rank's; on GPUs the others' follow it."""

    device: str
    kernels: str  # of a single CPU, see `native.load.KERNELS`
    num_threads: int | None
    layout: Layout
    exchange_seconds: float = 60.0  # a rank that has not answered another within a step by then stands still


@dataclass(frozen=True, slots=True)
class Compute:
    decoder: Decoder
    blocks: KvBlocks
    check: Callable[[], None]  # from any thread; raises what has made the decoder useless
    kernels: str  # in words; where they are the same, and the weights, so are the numbers
    looks_ahead: bool = False  # the decoder launches steps that it has not been asked for yet
    adapters: Adapters = field(default_factory=NoAdapters)


def build_compute(workload: Workload, placement: Placement, resources: ExitStack) -> Compute:
    """Load the weights and allocate the cache; what must be ended goes on `resources`. Raises `ModelConfigError`,
    `ModelLoadError`, `RankLostError`."""
    if placement.layout.num_ranks > 1:
        return _over_ranks(workload, placement, resources)
    device = torch.device(placement.device)
    if device.type == "cuda" and not workload.weight_bits and not workload.max_adapter_rank:
        cuda = load_cuda(workload, device)
        kernels = f"{'triton' if cuda.looks_ahead else 'torch'} on {torch.cuda.get_device_name(device)}"
        return Compute(cuda.decoder, cuda.blocks, check=lambda: None, kernels=kernels, looks_ahead=cuda.looks_ahead)
    native = load_native(workload, device, placement.kernels)
    if native is not None:
        resources.callback(native.close)
        kernels, adapters = f"native {native.isa}", native.adapters or NoAdapters()
        return Compute(native, native, check=lambda: None, kernels=kernels, adapters=adapters)
    return _with_adapters(workload, device) if workload.max_adapter_rank else _in_torch(workload, device)


def _in_torch(workload: Workload, device: torch.device, wrap: Wrap = as_it_is) -> Compute:
    model = load_model(workload.model_dir, workload.model, workload.max_model_len, workload.dtype, device, wrap=wrap)
    cache = KvCache(workload.model, workload.num_blocks, workload.block_size, workload.dtype, device)
    decoder = TorchDecoder(model, TorchAttention(cache, workload.model.attention), device)
    return Compute(decoder, cache, check=lambda: None, kernels=_torch_kernels(device))


def _torch_kernels(device: torch.device) -> str:
    """On a CPU PyTorch computes by what the processor has, and sums by threads."""
    if device.type == "cpu":
        return f"torch {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return f"torch on {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


def _with_adapters(workload: Workload, device: torch.device) -> Compute:
    """PyTorch's operations, one after the other: a captured CUDA step knows no adapters."""
    sites = Sites()
    compute = _in_torch(workload, device, sites.wrap)
    if not sites.sites:
        raise ModelConfigError(f"max_adapters: no layer of a {workload.model.architecture} takes adapters here")
    _log.info("room for adapters: PyTorch computes every step, operation by operation")
    adapters = LoadedAdapters(sites, workload.max_adapter_rank, workload.dtype, device)
    return replace(compute, decoder=AdapterDecoder(compute.decoder, adapters, sites), adapters=adapters)


def _over_ranks(workload: Workload, placement: Placement, resources: ExitStack) -> Compute:
    if workload.max_adapter_rank:
        raise ModelConfigError("max_adapters: adapters are not supported over several ranks")
    if workload.weight_bits:
        raise ModelConfigError("weights: rounded ones are not supported over several ranks")
    check_layout(workload.model, placement.layout, splits=FAMILIES[workload.model.architecture].splits)
    config = RankConfig(
        rank=0,
        layout=placement.layout,
        meeting=Meeting(_HOST, port=0, timeout_seconds=placement.exchange_seconds),
        model_dir=workload.model_dir,
        device=placement.device,
        dtype=str(workload.dtype).removeprefix("torch."),
        block_size=workload.block_size,
        num_blocks=workload.num_blocks,
        max_model_len=workload.max_model_len,
        num_threads=placement.num_threads,
    )
    parallel = load_parallel(config, workload.model, resources)
    layout, device = placement.layout, torch.device(placement.device)
    kernels = f"{layout.tensor} x {layout.pipeline} ranks, {_torch_kernels(device)}"
    return Compute(parallel.decoder, parallel.blocks, parallel.check, kernels)
