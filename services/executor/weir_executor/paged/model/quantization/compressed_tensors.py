"""What llm-compressor saves, in the formats of the `compressed-tensors` library: integers, packed or not, and FP8.

    weight_packed      [rows, ⌈columns · bits / 32⌉] int32, with weight_shape [2]: rows, columns
    or weight          [rows, columns] int8 or float8_e4m3fn
    weight_scale       [rows, groups], [rows, 1], [rows], [1] or [], or one per block
    weight_zero_point  as the scale; packed along the rows where the weight is packed and has groups or channels
    weight_g_idx       [columns]   each column's group; absent: so many columns in order

weight = (number - zero point) · scale. Packed numbers and zero points are kept plus half their range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import Fields, ModelConfigError
from weir_executor.paged.model.quantization.scheme import FLOATS, StoredTensors, spread, unpack

_FORMATS = ("dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_BITS = (2, 4, 8)
_STRATEGIES = ("tensor", "channel", "group", "block")
_EVERY_LINEAR_LAYER = "Linear"


@dataclass(frozen=True, slots=True)
class Group:
    """How the modules that `targets` names are quantized."""

    targets: tuple[str, ...]
    bits: int
    strategy: str
    group_size: int | None
    block: tuple[int, int]
    symmetric: bool


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    groups: tuple[Group, ...]
    ignored: tuple[str, ...]

    def holder(self, tensors: StoredTensors, module: str) -> str | None:
        if f"{module}.weight_scale" not in tensors or _matches(module, self.ignored):
            return None
        packed = f"{module}.weight_packed"
        return packed if packed in tensors else f"{module}.weight"

    def dequantize(self, tensors: StoredTensors, module: str) -> torch.Tensor:
        name = f"{module}.weight_scale"
        group = next((group for group in self.groups if _matches(module, group.targets)), None)
        if group is None:
            raise tensors.wrong(name, "is there, but no group of the quantization_config targets its module")
        numbers = _numbers(tensors, module, group.bits)
        rows, columns = numbers.shape
        block = _block(group, rows, columns)
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        scales = tensors.stored(name, dtypes=FLOATS, shapes=_shapes(grid)).float().view(grid)
        zeros = _zero_points(tensors, module, group, grid)
        place = _Places(block, rows, columns, _group_of_column(tensors, module, columns, grid[1]))
        if zeros is not None:
            numbers = numbers - place(zeros)
        return numbers * place(scales)


@dataclass(frozen=True, slots=True)
class _Places:
    """From one number per block to one per place."""

    block: tuple[int, int]
    rows: int
    columns: int
    group_of_column: torch.Tensor | None

    def __call__(self, blocks: torch.Tensor) -> torch.Tensor:
        if self.group_of_column is not None:
            return blocks[:, self.group_of_column]
        return spread(blocks, self.block, self.rows, self.columns)


def parse_compressed_tensors(fields: Fields) -> CompressedTensors:
    for name in ("sparsity_config", "transform_config"):
        inner = fields.inner(name)
        if inner.get("format", "dense") != "dense" or inner.get("config_groups"):
            raise ModelConfigError(f"compressed-tensors with a {name} is not known here")
    usual, by_name = fields.get("format", "dense"), fields.inner("config_groups")
    groups = (_parse_group(by_name.inner(name), usual) for name in by_name.raw)
    return CompressedTensors(tuple(group for group in groups if group), fields.patterns("ignore"))


def _parse_group(fields: Fields, usual_format: str) -> Group | None:
    """None: a group that leaves weights as they are."""
    if fields.get("weights") is None:
        return None
    kept = fields.get("format", usual_format)
    if kept not in _FORMATS:
        raise ModelConfigError(f"compressed-tensors in format {kept!r} is not known here; known: {', '.join(_FORMATS)}")
    weights = fields.inner("weights")
    bits = weights.whole("num_bits")
    if bits not in _BITS:
        raise ModelConfigError(f"compressed-tensors with {bits} bits is not known here; known: 2, 4, 8")
    return Group(
        targets=fields.patterns("targets"),
        bits=bits,
        strategy=_strategy(weights),
        group_size=weights.whole("group_size") if weights.get("group_size", -1) != -1 else None,
        block=weights.pair("block_structure", (128, 128)),
        symmetric=weights.flag("symmetric", True),
    )


def _strategy(weights: Fields) -> str:
    """What a configuration that does not say means follows from its group size."""
    size = weights.get("group_size")
    usual = "tensor" if size is None else "channel" if size == -1 else "group"
    return weights.one_of("strategy", _STRATEGIES, usual)


def _matches(module: str, names: tuple[str, ...]) -> bool:
    """By the whole name, by a pattern for a beginning of it, or as the linear layer that it is."""
    return any(
        re.match(name.removeprefix("re:"), module) if name.startswith("re:") else name in (module, _EVERY_LINEAR_LAYER)
        for name in names
    )


def _block(group: Group, rows: int, columns: int) -> tuple[int, int]:
    """How many rows and columns share a scale."""
    match group.strategy:
        case "tensor":
            return rows, columns
        case "channel":
            return 1, columns
        case "group":
            return 1, group.group_size or columns
        case _:
            return group.block


def _shapes(grid: tuple[int, int]) -> list[tuple[int, ...]]:
    """One number per block, without the axes that have one only."""
    if grid == (1, 1):
        return [(1, 1), (1,), ()]
    return [grid, (grid[0],)] if grid[1] == 1 else [grid]


def _numbers(tensors: StoredTensors, module: str, bits: int) -> torch.Tensor:
    """[rows, columns]. Packed ones say how many columns they have, for their last word may not be full."""
    packed = f"{module}.weight_packed"
    if packed not in tensors:
        return tensors.stored(f"{module}.weight", dtypes=[torch.int8, torch.float8_e4m3fn]).float()
    shape = tensors.stored(f"{module}.weight_shape", dtypes=[torch.int64, torch.int32], shapes=[(2,)])
    rows, columns = (int(size) for size in shape.tolist())
    words = tensors.stored(packed, dtypes=[torch.int32], shapes=[(rows, -(-columns * bits // 32))])
    return _centred(unpack(words, bits)[:, :columns], bits)


def _centred(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    return numbers.sub(2 ** (bits - 1))


def _zero_points(tensors: StoredTensors, module: str, group: Group, grid: tuple[int, int]) -> torch.Tensor | None:
    name = f"{module}.weight_zero_point"
    if group.symmetric or name not in tensors:
        return None
    stored = tensors.stored(name, dtypes=[torch.int32, torch.int8, *FLOATS, torch.float8_e4m3fn])
    packed_shape = (-(-grid[0] * group.bits // 32), grid[1])
    if stored.dtype is torch.int32 and stored.shape == packed_shape:
        return _centred(unpack(stored.T, group.bits).T[: grid[0]], group.bits)
    if tuple(stored.shape) not in _shapes(grid):
        raise tensors.wrong(name, f"has shape {tuple(stored.shape)}, expected {grid} or packed {packed_shape}")
    return stored.float().view(grid)


def _group_of_column(tensors: StoredTensors, module: str, columns: int, groups: int) -> torch.Tensor | None:
    name = f"{module}.weight_g_idx"
    if name not in tensors:
        return None
    group = tensors.stored(name, dtypes=[torch.int32, torch.int64], shapes=[(columns,)]).long()
    if int(group.min()) < 0 or int(group.max()) >= groups:
        raise tensors.wrong(name, f"names groups outside [0, {groups})")
    return group
