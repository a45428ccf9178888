"""The pieces of a Llama-family layer, as plain callables over tensors of shape [tokens, features].

They are no `nn.Module`s: nothing here is trained, and a call costs what its kernels cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

# What oneDNN is told to expect; the layout it chooses serves one row and hundreds alike.
_PACKED_FOR_ROWS = 32

Linear = Callable[[torch.Tensor], torch.Tensor]


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """y = x Wᵀ + b, by the fastest kernel for these weights here. The seam for packed and quantized weights."""
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # A packed weight is of no other use: it must be an ordinary tensor going in, whatever mode its caller is in.
        with torch.inference_mode(mode=False):
            return PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS), bias)
    return DenseLinear(weight, bias)


@dataclass(frozen=True, slots=True)
class DenseLinear:
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Weights laid out once in the order in which oneDNN reads them: up to twice as fast for few rows."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Zhang & Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467), over the last axis."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(silu(gate(x)) · up(x)), gate and up in one projection."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate).mul_(up))


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of this step's positions, [tokens, 1, head_dim]; made once per step for all layers.

    Cosines twice over; sines first negative, then positive.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, cos: torch.Tensor, sin: torch.Tensor) -> Rotation:
        """From one angle per pair: [tokens, 1, head_dim / 2]."""
        return cls(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """Turn [tokens, heads, head_dim], whose first half pairs with its second."""
        return torch.addcmul(heads * self.cos, heads.roll(heads.shape[-1] // 2, -1), self.sin)
