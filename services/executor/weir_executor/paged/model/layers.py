"""The pieces that decoders are made of, as plain callables over tensors of shape [tokens, features].

They are no `nn.Module`s: nothing here is trained, and a call costs what its kernels cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

# What oneDNN is told to expect; the layout it chooses serves one row and hundreds alike.
_PACKED_FOR_ROWS = 32

Linear = Callable[[torch.Tensor], torch.Tensor]
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]  # weight [out, in], bias [out]
Norm = Callable[[torch.Tensor], torch.Tensor]
Activation = Callable[[torch.Tensor], torch.Tensor]

# By their names in `config.json`. Hendrycks & Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415), and its
# approximation by a hyperbolic tangent, which goes by several names.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_fast": partial(functional.gelu, approximate="tanh"),
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


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
class OffsetRmsNorm:
    """An `RmsNorm` whose weight is kept as its distance from one, as Gemma's is. Float32 from end to end: a small
    distance would be lost in a narrow number near one."""

    weight: torch.Tensor  # float32, one already added
    eps: float

    @classmethod
    def of(cls, distance: torch.Tensor, eps: float) -> OffsetRmsNorm:
        return cls(1.0 + distance.float(), eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Ba et al., "Layer Normalization" (arXiv 1607.06450), over the last axis."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate(x)) · up(x)), gate and up in one projection."""

    gate_up: Linear
    down: Linear
    activation: Activation = functional.silu

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate).mul_(up))


@dataclass(frozen=True, slots=True)
class PlainMlp:
    """down(activation(up(x)))."""

    up: Linear
    down: Linear
    activation: Activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of this step's positions, [tokens, 1, dim]; made once per step for all layers.

    Cosines twice over; sines first negative, then positive.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def at(cls, positions: torch.Tensor, table: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """From a `rope_table`, which has one angle per pair."""
        rows = table.index_select(0, positions).to(dtype)
        cos, sin = rows[:, :1], rows[:, 1:]
        return cls(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """Turn the first `dim` dimensions of [tokens, heads, head_dim], whose first half pairs with its second."""
        dim = self.cos.shape[-1]
        if dim == heads.shape[-1]:
            return self._turn(heads)
        return torch.cat((self._turn(heads[..., :dim]), heads[..., dim:]), dim=-1)

    def _turn(self, heads: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(heads * self.cos, heads.roll(heads.shape[-1] // 2, -1), self.sin)


def soft_cap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap · tanh(x / cap), in place: nearly x where x is small, never beyond the cap."""
    return x if cap is None else x.div_(cap).tanh_().mul_(cap)
