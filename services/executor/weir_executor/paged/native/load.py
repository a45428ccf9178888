"""Whether the native kernels compute a model here, and the decoder if they do."""

from __future__ import annotations

import logging

import torch

from weir_executor.native.build import NativeUnavailableError
from weir_executor.native.library import best_isa
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.layers import DenseLinear
from weir_executor.paged.model.llama import LlamaModel
from weir_executor.paged.model.registry import load_model
from weir_executor.paged.native.adapters import NativeAdapters, NativeSites
from weir_executor.paged.native.binding import load_library
from weir_executor.paged.native.decoder import NativeDecoder, why_not
from weir_executor.paged.workload import Workload

_log = logging.getLogger(__name__)

# What `kernels` may be: the best there is, PyTorch's, or one instruction set of the native ones.
KERNELS = ("auto", "torch", "plain", "avx2", "avx512", "avx512bf16")


def load_native(workload: Workload, device: torch.device, kernels: str) -> NativeDecoder | None:
    """None when PyTorch is to compute, and one line in the log then says why.

    Raises `ModelConfigError` when an instruction set or rounded weights are asked for and cannot be had, and what
    loading raises.
    """
    if kernels == "torch" and not workload.weight_bits:
        return None
    wanted = "" if kernels == "auto" else kernels
    try:
        reason = why_not(workload.model, workload.dtype, device)
        if reason is not None:
            raise NativeUnavailableError(reason)
        library = load_library()
        isa = best_isa(library, wanted)
    except NativeUnavailableError as error:
        if wanted:
            raise ModelConfigError(f"kernels {wanted!r} cannot be had here: {error}") from error
        if workload.weight_bits:
            raise ModelConfigError(f"weights int{workload.weight_bits} cannot be had here: {error}") from error
        if device.type == "cpu":
            _log.warning("PyTorch computes, slower than the native kernels would: %s", error)
        return None
    sites = NativeSites()
    model = _load_model(workload, device, sites)
    threads, adapters = torch.get_num_threads(), _room_for_adapters(workload, device, sites)
    decoder = NativeDecoder(library, workload, model, num_threads=threads, isa=isa, adapters=adapters)
    _log.info("native kernels compute: %s, %d threads", isa, threads)
    return decoder


def _load_model(workload: Workload, device: torch.device, sites: NativeSites) -> LlamaModel:
    """With its weights as the checkpoint has them: the decoder packs them itself."""
    model = load_model(
        workload.model_dir,
        workload.model,
        workload.max_model_len,
        workload.dtype,
        device,
        make_linear=DenseLinear,
        wrap=sites.wrap,
    )
    assert isinstance(model, LlamaModel), model
    return model


def _room_for_adapters(workload: Workload, device: torch.device, sites: NativeSites) -> NativeAdapters | None:
    if not workload.max_adapter_rank:
        return None
    return NativeAdapters(sites, workload.max_adapter_rank, workload.dtype, device)
