"""GPTQ (Frantar et al., arXiv 2210.17323) as AutoGPTQ and GPTQModel save it.

    qweight  [columns · bits / 32, rows] int32   numbers packed along the columns (inputs), lowest bits first
    qzeros   [groups, rows · bits / 32] int32    zero points packed along the rows (outputs)
    scales   [groups, rows]
    g_idx    [columns]                           each column's group; absent: so many columns in order

weight = (number - zero point) · scale of the column's group. Format "gptq" keeps zero points less one, as if the words
had been decremented number by number with borrow; "gptq_v2" keeps them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import Fields, ModelConfigError
from weir_executor.paged.model.quantization.scheme import FLOATS, StoredTensors, unpack

_BITS = (2, 4, 8)
_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True)
class Gptq:
    bits: int
    group_size: int | None  # columns; None: one group
    zeros_less_one: bool

    def holder(self, tensors: StoredTensors, module: str) -> str | None:
        name = f"{module}.qweight"
        return name if name in tensors else None

    def dequantize(self, tensors: StoredTensors, module: str) -> torch.Tensor:
        numbers = unpack(tensors.stored(f"{module}.qweight", dtypes=[torch.int32]).T, self.bits)
        rows, columns = numbers.shape
        groups = -(-columns // self.group_size) if self.group_size else 1
        zero_shape = (groups, rows * self.bits // 32)
        zero_words = tensors.stored(f"{module}.qzeros", dtypes=[torch.int32], shapes=[zero_shape])
        scales = tensors.stored(f"{module}.scales", dtypes=FLOATS, shapes=[(groups, rows)]).float()
        zeros = unpack(zero_words + self._one_each() if self.zeros_less_one else zero_words, self.bits)
        group = self._group_of_column(tensors, module, columns, groups).to(numbers.device)
        return (numbers - zeros[group].T) * scales[group].T

    def _one_each(self) -> int:
        """A word that holds ones."""
        return sum(1 << shift for shift in range(0, 32, self.bits))

    def _group_of_column(self, tensors: StoredTensors, module: str, columns: int, groups: int) -> torch.Tensor:
        name = f"{module}.g_idx"
        if name not in tensors:
            return torch.arange(columns) // (self.group_size or columns)
        group = tensors.stored(name, dtypes=[torch.int32, torch.int64], shapes=[(columns,)]).long()
        if int(group.min()) < 0 or int(group.max()) >= groups:
            raise tensors.wrong(name, f"names groups outside [0, {groups})")
        return group


def parse_gptq(fields: Fields) -> Gptq:
    bits, group_size = fields.whole("bits"), fields.whole("group_size", 128, least=-1)
    if bits not in _BITS:
        raise ModelConfigError(f"gptq with {bits} bits is not known here; known: {', '.join(map(str, _BITS))}")
    if fields.flag("is_marlin_format", False):
        raise ModelConfigError("gptq in the marlin format is not known here; known: gptq, gptq_v2")
    if any(not rule.startswith("-:") for rule in fields.inner("dynamic").raw):
        raise ModelConfigError("gptq with other settings for some modules (dynamic) is not known here")
    fields.one_of("pack_dtype", ("int32",), "int32")
    kept = fields.one_of("checkpoint_format", _FORMATS, "gptq")
    return Gptq(bits, group_size if group_size > 0 else None, zeros_less_one=kept == "gptq")
