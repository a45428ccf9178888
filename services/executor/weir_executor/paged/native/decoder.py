"""A Llama-family model on a CPU, one call into C++ per step. See `native/src/kernels/step.h` for what a step does.

Weights are packed once, for the processor's widest products, and lie on large pages; keys and values lie as attention
multiplies them. Sums are taken in one order whatever a batch holds: a token's numbers are the same, bit by bit, alone,
among others, in chunks and after a preemption, in float32 and in bfloat16.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain

import torch

from weir_executor.native.library import best_isa
from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.decoder import Decoded
from weir_executor.paged.finite import all_finite
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.kv_cache import block_bytes
from weir_executor.paged.model.config import LayerAttention, ModelConfig
from weir_executor.paged.model.layers import DenseLinear, Linear, Mlp, Norm, RmsNorm
from weir_executor.paged.model.llama import Layer, LlamaConfig, LlamaModel
from weir_executor.paged.model.rope import rope_table
from weir_executor.paged.native import binding
from weir_executor.paged.native.adapters import NativeAdapters
from weir_executor.paged.native.binding import Adapter, EndTensors, LayerTensors, Shape, Step
from weir_executor.paged.workload import Workload

_ELEMENTS = {torch.bfloat16: binding.BF16, torch.float32: binding.F32}


def why_not(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """What keeps these kernels from computing this model; None when nothing does."""
    if device.type != "cpu":
        return f"the device is {device}"
    if dtype not in _ELEMENTS:
        return f"the dtype is {dtype}"
    if not isinstance(config, LlamaConfig) or config.experts is not None:
        return f"the architecture is {config.architecture}"
    return _odd_shape(config)


def _odd_shape(config: LlamaConfig) -> str | None:
    group = config.num_heads // config.num_kv_heads
    if any(attention.softcap is not None for attention in config.attention):
        return "attention scores are capped"
    if config.head_dim > binding.MOST_DIMS or group > binding.MOST_QUERY_ROWS:
        return f"heads of {config.head_dim} dimensions, {group} to a KV head"
    if config.hidden_size % 2 or config.intermediate_size % 2 or config.head_dim % 2:
        return "an odd width"
    return None


class NativeDecoder:
    """A `Decoder` and its `KvBlocks` in one: the blocks lie where the kernels find them.

    Takes the model's weights over, layer by layer, so that memory holds them once: `model.layers` is empty afterwards.
    Raises `MemoryError`, and `NativeUnavailableError` when `isa` is none that runs here.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        workload: Workload,
        model: LlamaModel,
        *,
        num_threads: int,
        isa: str = "",
        adapters: NativeAdapters | None = None,
    ) -> None:
        self.adapters = adapters
        self._library, self._config, self._dtype = library, model.config, workload.dtype
        self.isa = best_isa(library, isa)
        self.block_bytes = block_bytes(model.config, workload.block_size, workload.dtype)
        self._handle = library.weir_open(_shape(model.config, workload, num_threads), self.isa.encode())
        if not self._handle:
            raise MemoryError(f"no memory for {workload.num_blocks} blocks of {self.block_bytes} bytes")
        self._free = weakref.finalize(self, library.weir_close, self._handle)
        self._free.atexit = False  # a step may still run then, and the process's memory goes anyway
        self._stepping = threading.Lock()
        self._load(model, workload.max_model_len)

    def close(self) -> None:
        """Give memory and threads back, unless a step is still under way: then they go with the process."""
        if self._stepping.acquire(blocking=False):
            self._free()

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def decode(self, batch: FlatBatch) -> Decoded:
        sound = ctypes.create_string_buffer(len(batch.rows))
        decoded = Decoded(sound=(), logits=None)
        if batch.wanted and batch.best_only:
            decoded.best = torch.empty(len(batch.wanted), dtype=torch.int64)
        elif batch.wanted:
            decoded.logits = torch.empty((len(batch.wanted), self._config.vocab_size))
        if batch.pooled:
            decoded.hidden = torch.empty((len(batch.pooled), self._config.hidden_size))
        self._step(batch, decoded, sound)
        decoded.sound = [byte != 0 for byte in sound.raw]
        return decoded

    def _step(self, batch: FlatBatch, decoded: Decoded, sound: ctypes.Array[ctypes.c_char]) -> None:
        tables = [row.blocks for row in batch.rows]
        used, token_adapters = self.adapters.used_by(batch) if self.adapters is not None else ([], [])
        numbers, pointers = _side_by_side(
            batch.token_ids,
            [0, *accumulate(row.count for row in batch.rows)],
            [row.first for row in batch.rows],
            list(chain.from_iterable(tables)),
            [0, *accumulate(map(len, tables))],
            batch.wanted,
            batch.pooled,
            token_adapters,
        )
        most_rank = max((adapter.most_rank for adapter in used), default=0)
        structs = (Adapter * len(used))(*(adapter.struct for adapter in used)) if used else None
        counts = (len(batch.token_ids), len(batch.rows), len(batch.wanted), len(batch.pooled), most_rank)
        results = map(_pointer, (decoded.logits, decoded.best, decoded.hidden))
        adapters = None if structs is None else ctypes.addressof(structs)
        step = Step(*counts, *pointers, adapters, *results, ctypes.addressof(sound))
        with self._stepping:
            failed = self._library.weir_step(self._handle, step)
        del numbers  # which the pointers point into
        if failed:
            raise MemoryError(f"no memory for a step of {step.tokens} tokens")

    # ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    reads_anywhere = True  # a copy by one thread, without the interpreter's lock

    def read_blocks(self, block_ids: Sequence[int]) -> list[bytes]:
        payloads = []
        for block_id in block_ids:
            payload = ctypes.create_string_buffer(self.block_bytes)
            self._library.weir_read_block(self._handle, block_id, payload)
            payloads.append(payload.raw)
        return payloads

    def write_blocks(self, loads: Sequence[BlockLoad]) -> None:
        for load in loads:
            assert len(load.payload) == self.block_bytes, len(load.payload)
            self._library.weir_write_block(self._handle, load.block_id, bytes(load.payload))

    def is_sound(self, payload: bytes | memoryview) -> bool:
        return len(payload) == self.block_bytes and all_finite(payload, self._dtype)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            self._library.weir_clear_block(self._handle, block_id)

    # ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, model: LlamaModel, max_model_len: int) -> None:
        for attention in model.config.attention:
            self._load_layer(model.layers.pop(0), attention)
        kept = [
            model.embedding.contiguous(),
            _weight(model.lm_head).contiguous(),
            _norm(model.norm),
            rope_table(model.config.rope, max_model_len, torch.device("cpu")).contiguous(),
        ]
        _check(self._library.weir_load_ends(self._handle, EndTensors(*map(_pointer, kept))))

    def _load_layer(self, layer: Layer, attention: LayerAttention) -> None:
        assert isinstance(layer.mlp, Mlp), layer.mlp
        linears = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
        norms = (layer.attention_norm, layer.mlp_norm, layer.query_norm, layer.key_norm)
        kept = [*map(_weight, linears), *map(_bias, linears), *(norm and _norm(norm) for norm in norms)]
        tensors = LayerTensors(*map(_pointer, kept), attention.scale, attention.window or 0)
        _check(self._library.weir_load_layer(self._handle, tensors))


def _shape(config: LlamaConfig, workload: Workload, num_threads: int) -> Shape:
    return Shape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_dim=config.rope.dim,
        block_size=workload.block_size,
        num_blocks=workload.num_blocks,
        positions=workload.max_model_len,
        element=_ELEMENTS[workload.dtype],
        weight_bits=workload.weight_bits,
        threads=num_threads,
        eps=config.rms_norm_eps,
    )


def _side_by_side(*lists: list[int]) -> tuple[array[int], list[int]]:
    """All lists as 32-bit numbers, and where in memory each begins."""
    numbers, starts = array("i"), []
    for values in lists:
        starts.append(len(numbers))
        numbers.fromlist(values)
    address, _ = numbers.buffer_info()
    return numbers, [address + start * numbers.itemsize for start in starts]


def _weight(linear: Linear) -> torch.Tensor:
    assert isinstance(linear, DenseLinear), linear
    return linear.weight.contiguous()


def _bias(linear: Linear) -> torch.Tensor | None:
    assert isinstance(linear, DenseLinear), linear
    return None if linear.bias is None else linear.bias.float().contiguous()


def _norm(norm: Norm) -> torch.Tensor:
    assert isinstance(norm, RmsNorm), norm
    return norm.weight.float().contiguous()


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the packed weights")
