"""Safetensors → tensors by name. Every way in which a checkpoint can be wrong names its file and its tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from weir_chassis.telemetry import get_logger
from weir_executor.paged.model.layers import Linear, MakeLinear, linear
from weir_executor.paged.model.quantization.scheme import WeightScheme
from weir_executor.paged.model.shard import WHOLE, Shard

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_TELL_SECONDS = 1.0


Wrap = Callable[[Linear, Sequence[str], Sequence[int], int], Linear]


def as_it_is(linear: Linear, *_: object) -> Linear:
    return linear


class ModelLoadError(Exception):
    """A weight file is missing, damaged, or does not hold what the configuration promises."""


class Checkpoint:
    """The open weight files of one model, as far as `shard` goes; tensors are read when asked for. Use it in a `with`
    block."""

    def __init__(
        self,
        model_dir: Path,
        dtype: torch.dtype,
        device: torch.device,
        *,
        scheme: WeightScheme | None = None,
        shard: Shard = WHOLE,
        make_linear: MakeLinear = linear,
        wrap: Wrap = as_it_is,
    ) -> None:
        """`make_linear`: how whoever computes wants its projections kept. `wrap` is given each of a layer's, with the
        names of the modules that are stacked in it, the rows of each and their columns."""
        self.dtype, self.device, self.shard = dtype, device, shard
        self.make_linear, self.wrap = make_linear, wrap
        self._dir, self._scheme = model_dir, scheme
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._file_of = _locate(model_dir)
        self._read_bytes, self._told_at = 0, monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        file_name = self._file_of.get(name) or self._file_of.get("*")
        return file_name is not None and name in self._open(file_name).keys()  # noqa: SIM118 (not a dict)

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """One tensor of exactly this shape, or the shard's part of one, in the engine's dtype and on its device."""
        name = self.shard.stored_name(name)
        part = self._part(name, self._read(name), tuple(shape))
        if not part.is_floating_point() or part.dtype.itemsize < 2:
            raise self.wrong(name, f"is {part.dtype}, expected floating point of two bytes or more")
        # A copy keeps the weights independent of what happens to the file later.
        return part.to(device=self.device, dtype=self.dtype, copy=True)

    def weight(self, module: str, rows: int, columns: int, *, transposed: bool = False) -> torch.Tensor:
        """A linear layer's, [rows, columns], dequantized where it is kept narrow; else like `tensor`.

        `transposed`: the checkpoint keeps those that are not narrow as [columns, rows].
        """
        stored_module = self.shard.stored_name(module)
        holder = self._scheme.holder(self, stored_module) if self._scheme else None
        if self._scheme and holder:
            whole = self._scheme.dequantize(self, stored_module)
            return self._part(holder, whole, (rows, columns)).to(self.dtype).contiguous()
        if transposed:
            return self.tensor(f"{module}.weight", (columns, rows)).T.contiguous()
        return self.tensor(f"{module}.weight", (rows, columns))

    def weights(self, modules: Sequence[str], rows: Sequence[int], columns: int) -> torch.Tensor:
        """Stacked along their rows: projections of one input, fused into one."""
        return torch.cat([self.weight(name, count, columns) for name, count in zip(modules, rows, strict=True)])

    def biases(self, modules: Sequence[str], rows: Sequence[int]) -> torch.Tensor:
        return torch.cat([self.tensor(f"{name}.bias", (count,)) for name, count in zip(modules, rows, strict=True)])

    def stored(
        self, name: str, *, dtypes: Sequence[torch.dtype] = (), shapes: Sequence[tuple[int, ...]] = ()
    ) -> torch.Tensor:
        """One whole tensor on the engine's device, of one of these types and shapes where any are given. Not to be kept
        or changed: on a CPU it is the mapped file itself."""
        tensor = self._read(name)
        if dtypes and tensor.dtype not in dtypes:
            raise self.wrong(name, f"is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if shapes and tuple(tensor.shape) not in shapes:
            raise self.wrong(name, f"has shape {tuple(tensor.shape)}, expected {' or '.join(map(str, shapes))}")
        return tensor.to(self.device)

    def wrong(self, name: str, problem: str) -> ModelLoadError:
        """The error that names a tensor and its file."""
        path = self._dir / (self._file_of.get(name) or self._file_of["*"])
        return ModelLoadError(f"{path}: tensor {name!r}: {problem}")

    def _read(self, name: str) -> torch.Tensor:
        file_name = self._file_of.get(name) or self._file_of.get("*")
        if file_name is None:
            raise ModelLoadError(f"{self._dir / _INDEX}: no file is named for tensor {name!r}")
        try:
            tensor: torch.Tensor = self._open(file_name).get_tensor(name)
        except SafetensorError as error:
            raise self.wrong(name, str(error)) from error
        self._tell(tensor.nbytes)
        return tensor

    def _tell(self, read_bytes: int) -> None:
        """Loading a large model takes minutes, in which somebody waits."""
        self._read_bytes += read_bytes
        if monotonic() - self._told_at < _TELL_SECONDS:
            return
        self._told_at = monotonic()
        total = sum(path.stat().st_size for path in self._dir.glob("*.safetensors"))
        # Tensors that are looked at twice count twice, and nobody is to see more than all.
        get_logger().info("model_loading", loaded_bytes=min(self._read_bytes, total), total_bytes=total)

    def _part(self, name: str, whole: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        part = self.shard.part_of(whole, shape)
        if part is None:
            raise self.wrong(name, f"has shape {tuple(whole.shape)}, expected {shape}")
        return part

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self._dir / file_name
            try:
                self._files[file_name] = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(f"{path}: {error}") from error
        return self._files[file_name]


def _locate(model_dir: Path) -> dict[str, str]:
    """Tensor name → file name; `*` stands for all names when there is one file only."""
    index = model_dir / _INDEX
    if not index.exists():
        return {"*": _SINGLE}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file_name) for name, file_name in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{index}: not an index of weights: {error}") from error
