"""Quantized twins of tiny models, packed number by number as each format is defined. Shares no code with the engine.

A twin is two directories: one holds the packed weights, the other the same numbers as an ordinary model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models_fixture import save_tiny_model

Tensors = dict[str, torch.Tensor]
_PLAIN_PARTS = ("embed", "lm_head", "wte", "wpe", "mlp.gate.weight", "block_sparse_moe.gate.weight")


@dataclass(frozen=True)
class Packed:
    tensors: Tensors  # by what follows the module's name
    weight: torch.Tensor  # [rows, columns] float32: what they are worth


def save_twin(
    family: str, root: Path, config: dict[str, Any], pack: Callable[[torch.Tensor], Packed], *, transposed: bool = False
) -> tuple[Path, Path]:
    """(packed, plain). `transposed`: the family keeps weights with their inputs as rows."""
    plain_dir = save_tiny_model(family, root / "plain")
    packed_dir = save_tiny_model(family, root / "packed")
    plain = load_file(plain_dir / "model.safetensors")
    packed = dict(plain)
    for name in _linear_weights(plain):
        weight = packed.pop(name)
        done = pack(weight.T.contiguous() if transposed else weight)
        plain[name] = done.weight.T.contiguous() if transposed else done.weight
        packed |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in done.tensors.items()}
    save_file(plain, plain_dir / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, packed_dir / "model.safetensors", metadata={"format": "pt"})
    path = packed_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return packed_dir, plain_dir


def _linear_weights(weights: Tensors) -> Iterator[str]:
    for name, tensor in list(weights.items()):
        if tensor.ndim == 2 and name.endswith(".weight") and not any(part in name for part in _PLAIN_PARTS):
            yield name


def _words(rows: list[list[int]], bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Each row's numbers into 32-bit words, the first of a word lowest; `order`: which number stands where instead."""
    per_word = 32 // bits
    packed = []
    for row in rows:
        words = []
        for first in range(0, len(row), per_word):
            numbers = row[first : first + per_word]
            numbers += [0] * (per_word - len(numbers))
            placed = numbers if order is None else [numbers[index] for index in order]
            word = sum(number << (bits * place) for place, number in enumerate(placed))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        packed.append(words)
    return torch.tensor(packed, dtype=torch.int32)


@dataclass(frozen=True)
class _Grid:
    """A weight as whole numbers, a group of columns sharing scale and zero point: [rows, columns], [rows, groups]."""

    numbers: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_of_column: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        wide = self.group_of_column
        return ((self.numbers - self.zeros[:, wide]).double() * self.scales.double()[:, wide]).float()


def _quantize(weight: torch.Tensor, bits: int, group_of_column: torch.Tensor, *, symmetric: bool) -> _Grid:
    groups, top = int(group_of_column.max()) + 1, 2**bits - 1
    scales, zeros = torch.empty(len(weight), groups), torch.empty(len(weight), groups, dtype=torch.int64)
    for group in range(groups):
        members = weight[:, group_of_column == group]
        if symmetric:
            scales[:, group] = members.abs().amax(dim=1) * 2 / top
            zeros[:, group] = 2 ** (bits - 1)
        else:
            low, high = members.amin(dim=1).clamp(max=0), members.amax(dim=1).clamp(min=0)
            scales[:, group] = (high - low) / top
            zeros[:, group] = (-low / scales[:, group]).round().long()
    scales = scales.half().float()
    wide = group_of_column
    numbers = ((weight / scales[:, wide]).round().long() + zeros[:, wide]).clamp(0, top)
    return _Grid(numbers, scales, zeros, group_of_column)


def _in_order(columns: int, group_size: int) -> torch.Tensor:
    return torch.arange(columns) // (group_size if group_size > 0 else columns)


def pack_gptq(
    weight: torch.Tensor, *, bits: int, group_size: int, symmetric: bool, act_order: bool = False, v2: bool = False
) -> Packed:
    columns = weight.shape[1]
    group = _in_order(columns, group_size)
    if act_order:
        group = group[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    grid = _quantize(weight, bits, group, symmetric=symmetric)
    # Version 1 stores zero points less one. One that is zero borrows from its neighbour, as in a subtraction of words.
    zero_words = _words(grid.zeros.T.tolist(), bits)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    tensors = {
        "qweight": _words(grid.numbers.tolist(), bits).T.contiguous(),
        "qzeros": zero_words if v2 else zero_words - ones,
        "scales": grid.scales.T.contiguous().half(),
        "g_idx": group.int(),
    }
    return Packed(tensors, grid.weight)


def pack_awq(weight: torch.Tensor, *, group_size: int) -> Packed:
    grid = _quantize(weight, 4, _in_order(weight.shape[1], group_size), symmetric=False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": _words(grid.numbers.T.tolist(), 4, order),
        "qzeros": _words(grid.zeros.T.tolist(), 4, order),
        "scales": grid.scales.T.contiguous().half(),
    }
    return Packed(tensors, grid.weight)


def pack_fp8(weight: torch.Tensor, *, block: tuple[int, int], name: str, shape: str = "grid") -> Packed:
    """`shape`: how the scales are kept; "grid", or without the axes of length one: "column", "row", "scalar"."""
    rows, columns = weight.shape
    tall, wide = -(-rows // block[0]), -(-columns // block[1])
    scales, numbers, worth = torch.empty(tall, wide), torch.empty(rows, columns), torch.empty(rows, columns)
    for i in range(tall):
        for j in range(wide):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / 448  # the greatest number of this type
            numbers[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn).float()
            worth[place] = numbers[place] * scales[i, j]
    kept = {"grid": scales, "column": scales, "row": scales.flatten(), "scalar": scales.flatten()[0]}[shape].clone()
    return Packed({"weight": numbers.to(torch.float8_e4m3fn), name: kept}, worth)
