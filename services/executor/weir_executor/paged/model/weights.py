"""Safetensors → tensors by name. Every way in which a checkpoint can be wrong names its file and its tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from weir_executor.paged.model.layers import MakeLinear, linear
from weir_executor.paged.model.shard import WHOLE, Shard

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


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
        shard: Shard = WHOLE,
        make_linear: MakeLinear = linear,
    ) -> None:
        self.dtype, self.device, self.shard = dtype, device, shard
        self.make_linear = make_linear  # how whoever computes wants its projections kept
        self._dir = model_dir
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._file_of = _locate(model_dir)

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
        file_name = self._file_of.get(name) or self._file_of.get("*")
        if file_name is None:
            raise ModelLoadError(f"{self._dir / _INDEX}: no file is named for tensor {name!r}")
        path = self._dir / file_name
        try:
            tensor: torch.Tensor = self._open(file_name).get_tensor(name)
        except SafetensorError as error:
            raise ModelLoadError(f"{path}: tensor {name!r}: {error}") from error
        part = self.shard.part_of(tensor, tuple(shape))
        if part is None:
            raise ModelLoadError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if not part.is_floating_point():
            raise ModelLoadError(f"{path}: tensor {name!r} is {tensor.dtype}, expected floating point")
        # Files are mapped: a copy keeps the weights independent of what happens to the file later.
        return part.to(device=self.device, dtype=self.dtype, copy=True)

    def concatenated(self, names: Sequence[str], rows: Sequence[int], columns: Sequence[int] = ()) -> torch.Tensor:
        """Tensors stacked along their first axis: projections of one input, fused into one."""
        parts = [self.tensor(name, (count, *columns)) for name, count in zip(names, rows, strict=True)]
        return torch.cat(parts)

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
