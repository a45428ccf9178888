"""AWQ (Lin et al., arXiv 2306.00978) as AutoAWQ saves it for its "gemm" kernels, in four bits.

    qweight  [columns, rows / 8] int32   numbers packed along the rows (outputs)
    qzeros   [groups, rows / 8] int32    zero points, packed alike
    scales   [groups, rows]

weight = (number - zero point) · scale of the column's group. Eight rows share a word: even ones first, then odd ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import Fields, ModelConfigError
from weir_executor.paged.model.quantization.scheme import FLOATS, StoredTensors, is_named, spread, unpack

_BITS, _PER_WORD = 4, 8
_PLACE_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)  # inside a word


@dataclass(frozen=True, slots=True)
class Awq:
    group_size: int | None  # columns; None: one group
    left_out: tuple[str, ...]

    def holder(self, tensors: StoredTensors, module: str) -> str | None:
        name = f"{module}.qweight"
        return name if name in tensors and not is_named(module, self.left_out) else None

    def dequantize(self, tensors: StoredTensors, module: str) -> torch.Tensor:
        numbers = _unpack(tensors.stored(f"{module}.qweight", dtypes=[torch.int32]))
        columns, rows = numbers.shape
        size = self.group_size or columns
        groups = -(-columns // size)
        zero_shape = (groups, rows // _PER_WORD)
        zeros = _unpack(tensors.stored(f"{module}.qzeros", dtypes=[torch.int32], shapes=[zero_shape]))
        scales = tensors.stored(f"{module}.scales", dtypes=FLOATS, shapes=[(groups, rows)]).float()
        of_group = (size, 1)
        centred = numbers - spread(zeros, of_group, columns, rows)
        return (centred * spread(scales, of_group, columns, rows)).T


def parse_awq(fields: Fields) -> Awq:
    bits = fields.whole("bits" if "bits" in fields.raw else "w_bit", _BITS)
    if bits != _BITS:
        raise ModelConfigError(f"awq with {bits} bits is not known here; known: {_BITS}")
    version = str(fields.get("version") or fields.get("format") or "gemm").lower()
    if version != "gemm":
        raise ModelConfigError(f"awq of version {version!r} is not known here; known: gemm")
    group_size = fields.whole("group_size" if "group_size" in fields.raw else "q_group_size", 128, least=-1)
    return Awq(group_size if group_size > 0 else None, fields.patterns("modules_to_not_convert"))


def _unpack(words: torch.Tensor) -> torch.Tensor:
    by_word = unpack(words, _BITS).view(*words.shape, _PER_WORD)
    return by_word[..., list(_PLACE_OF_ROW)].flatten(-2)
