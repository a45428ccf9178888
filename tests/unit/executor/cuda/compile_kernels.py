"""Compile every launch of the CUDA path for a device that is not there, with the arguments of an 8B model.

The launching code runs on CPU tensors, and each kernel is replaced by one that compiles for the target instead of
running. Prints one JSON line per launch. To be run with Triton's interpreter off: see `test_compile.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models_fixture import tiny_model
from weir_executor.paged.cuda import attention, drawing, layers
from weir_executor.paged.cuda.kernels import attend, draw, fused
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import LayerAttention
from weir_executor.paged.model.registry import load_config

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32",
             torch.int64: "*i64", torch.float64: "*fp64"}  # fmt: skip
_HELPERS = ("uniform",)  # called by kernels only
_OPTIONS = ("num_warps", "num_stages")


class CompileOnly:
    """Stands in for a kernel: `kernel[grid](…)` compiles and reports."""

    def __init__(self, kernel: Any, target: int) -> None:
        self._kernel: Any = kernel._kernel if isinstance(kernel, CompileOnly) else kernel
        self._target = target
        self._known: set[str] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(1 <= size < 65536 for size in grid[1:]), grid
        return self._compile

    def _compile(self, *arguments: Any, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in _OPTIONS if name in keywords}
        given = dict(zip(self._kernel.arg_names, arguments, strict=False)) | keywords
        constants = {name: value for name, value in given.items() if name in keywords}
        signature = {name: "constexpr" if name in constants else _type_of(value) for name, value in given.items()}
        if str((constants, signature)) in self._known:
            return
        self._known.add(str((constants, signature)))
        attributes = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(self._kernel.arg_names)
            if name not in constants and _is_aligned(given[name])
        }
        source = ASTSource(self._kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", self._target, 32), options=options)
        ptx = compiled.asm["ptx"]
        report = {
            "kernel": self._kernel.__name__,
            "target": self._target,
            "shared": compiled.metadata.shared,
            "products": "wgmma" in ptx or "mma.sync" in ptx,
            "pipelined": "cp.async" in ptx,
            "stack": _stack_bytes(compiled.asm["cubin"]),
        }
        print(json.dumps(report), flush=True)


def _stack_bytes(binary: bytes) -> int:
    """What a thread keeps in slow memory because it has no more registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found, usage
    return int(found[1])


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _is_aligned(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


def main() -> None:
    setattr(attention, "_is_interpreted", lambda _: False)  # noqa: B010 (mypy wants the parameter's name)
    setattr(attention, "_programs", lambda _: 264)  # noqa: B010
    _compile_instead(90)
    _launch_all(128, torch.bfloat16, softcap=None)
    _launch_all(64, torch.float32, softcap=None)
    _compile_instead(80)
    _launch_all(256, torch.bfloat16, softcap=50.0)


def _compile_instead(target: int) -> None:
    for module in (attend, draw, fused):
        for name, kernel in list(vars(module).items()):
            if (
                isinstance(kernel, triton.JITFunction | CompileOnly)
                and name not in _HELPERS
                and not name.startswith("_")
            ):
                setattr(module, name, CompileOnly(kernel, target))


def _launch_all(head_dim: int, dtype: torch.dtype, softcap: float | None) -> None:
    heads, kv_heads, hidden, inner = 32, 8, 4096, 14336
    config = load_config(tiny_model("llama3"))
    config = replace(
        config,
        num_layers=1,
        attention=config.attention[:1],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
    )
    device = torch.device("cpu")
    cache = KvCache(config, 4, 16, dtype, device)
    scoring = LayerAttention(head_dim**-0.5, softcap=softcap)
    backend = attention.TritonAttention(cache, heads, [scoring], 4096)
    numbers = torch.zeros(64, dtype=torch.int32)
    for few, many in ((1, 0), (64, 2)):
        backend.use(attention.DeviceTables(numbers, numbers, numbers[: 2 * few], numbers[: 2 * many], numbers, few))
        qkv = torch.zeros((few, heads + 2 * kv_heads, head_dim), dtype=dtype)
        backend.attend(0, qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :])
    x = torch.zeros((2, hidden), dtype=dtype)
    layers.add_rms_norm(x, x, x[0], 1e-5)
    layers.add_rms_norm(x, None, x[0], 1e-5)
    layers.silu_mul(torch.zeros((2, 2 * inner), dtype=dtype))
    drawing.draw(torch.zeros((1, 128256)), numbers, numbers)
    rope = torch.zeros((8, 2, head_dim // 2))
    for norms in (None, layers.HeadNorms(x[0], x[0], 1e-5)):
        layers.rotate_and_write(qkv, numbers, numbers, rope=rope, cache=cache, layer=0, norms=norms)


if __name__ == "__main__":
    main()
