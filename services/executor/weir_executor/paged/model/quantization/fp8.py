"""Eight-bit floating point weights with scales: DeepSeek's and Qwen's blocks, one scale per row, one for all.

    weight            [rows, columns] float8_e4m3fn
    weight_scale_inv  [⌈rows / a⌉, ⌈columns / b⌉] for blocks of a by b    or, by the name `weight_scale`,
                      [rows, 1], [rows], [1] or []

weight = number · scale, whatever the scale is called. Scales for activations are not read: we compute in the engine's
dtype, which is wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import Fields
from weir_executor.paged.model.quantization.scheme import FLOATS, StoredTensors, is_named, spread

_SCALES = ("weight_scale_inv", "weight_scale")
_POWERS_OF_TWO = torch.float8_e8m0fnu


@dataclass(frozen=True, slots=True)
class Fp8:
    block: tuple[int, int]
    left_out: tuple[str, ...]

    def holder(self, tensors: StoredTensors, module: str) -> str | None:
        if self._scale_name(tensors, module) is None or is_named(module, self.left_out):
            return None
        return f"{module}.weight"

    def dequantize(self, tensors: StoredTensors, module: str) -> torch.Tensor:
        numbers = tensors.stored(f"{module}.weight", dtypes=[torch.float8_e4m3fn]).float()
        rows, columns = numbers.shape
        name = self._scale_name(tensors, module)
        assert name is not None, "asked of modules that have a holder"
        grid = (-(-rows // self.block[0]), -(-columns // self.block[1]))
        shapes = [grid, (rows, 1), (rows,), (1, 1), (1,), ()]
        scales = tensors.stored(name, dtypes=[*FLOATS, _POWERS_OF_TWO], shapes=shapes).float()
        if scales.shape == grid:
            return numbers * spread(scales, self.block, rows, columns)
        return numbers * scales.view(-1, 1)

    def _scale_name(self, tensors: StoredTensors, module: str) -> str | None:
        return next((name for scale in _SCALES if (name := f"{module}.{scale}") in tensors), None)


def parse_fp8(fields: Fields) -> Fp8:
    block = fields.pair("weight_block_size", (128, 128))
    left_out = fields.patterns("modules_to_not_convert") + fields.patterns("ignored_layers")
    return Fp8(block, left_out)
