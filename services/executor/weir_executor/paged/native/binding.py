"""The kernels' functions and structs, as `abi.h` and `api.cpp` in `native/src/kernels/` have them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_void_p

from weir_executor.native.library import Functions, open_library

BF16, F32 = 0, 1
# Room on the stack in `decoder.h`.
MOST_DIMS, MOST_QUERY_ROWS = 256, 128
PANEL = 32


class Shape(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("vocab", "hidden", "inner", "layers", "heads", "kv_heads", "head_dim")),
        *((name, c_int32) for name in ("rope_dim", "block_size", "num_blocks", "positions", "element")),
        *((name, c_int32) for name in ("weight_bits", "threads")),
        ("eps", c_float),
    )


class LayerTensors(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("qkv_bias", "output_bias", "gate_up_bias", "down_bias")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        ("scale", c_float),
        ("window", c_int32),
    )


class EndTensors(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("embedding", "lm_head", "norm", "rope"))


class Adapter(ctypes.Structure):
    _fields_ = (("down", POINTER(c_void_p)), ("up", POINTER(c_void_p)), ("ranks", POINTER(c_int32)))


class Step(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("tokens", "rows", "wanted", "pooled", "most_rank")),
        *((name, c_void_p) for name in ("token_ids", "row_starts", "row_positions", "table", "table_starts")),
        *((name, c_void_p) for name in ("wanted_places", "pooled_places", "token_adapters", "adapters")),
        *((name, c_void_p) for name in ("logits", "best", "hidden", "sound")),
    )


_FUNCTIONS: Functions = {
    "weir_open": (c_void_p, (POINTER(Shape), c_char_p)),
    "weir_load_layer": (c_int, (c_void_p, POINTER(LayerTensors))),
    "weir_load_ends": (c_int, (c_void_p, POINTER(EndTensors))),
    "weir_step": (c_int, (c_void_p, POINTER(Step))),
    "weir_read_block": (None, (c_void_p, c_int, c_void_p)),
    "weir_write_block": (None, (c_void_p, c_int, c_char_p)),
    "weir_clear_block": (None, (c_void_p, c_int)),
    "weir_close": (None, (c_void_p,)),
}


def load_library() -> ctypes.CDLL:
    """Raises `NativeUnavailableError`."""
    return open_library("kernels", _FUNCTIONS)
