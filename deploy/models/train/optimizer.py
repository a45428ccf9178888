"""Muon for the layers' matrices and AdamW for the rest, on float32 masters of bfloat16 weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 0.02
OTHER_RATE = 0.003
_MOMENTUM = 0.95
_DECAY = 0.02
_MAX_GRADIENT_NORM = 1.0


def orthogonalised(matrix: Tensor, step_count: int = 5) -> Tensor:
    """The nearest matrix with equal singular values, by Newton-Schulz steps in bfloat16; [rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(step_count):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result


class MasterWeights:
    """Steps float32 masters with a bfloat16 model's gradients and copies them back, rounded."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = dict(model.named_parameters())
        self.masters = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        self._is_matrix = {name: weight.dim() == 2 and ".layers." in name for name, weight in self._weights.items()}
        self._momenta = {name: torch.zeros_like(m) for name, m in self.masters.items() if self._is_matrix[name]}
        others = [name for name in self.masters if not self._is_matrix[name]]
        self._adam = torch.optim.AdamW(
            [self.masters[n] for n in others], lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._others = others

    @torch.no_grad()
    def step(self, rate_scale: float) -> None:
        """One update at `rate_scale` (0..1) of the full learning rates; clears the gradients."""
        gradients = {name: weight.grad.float() for name, weight in self._weights.items() if weight.grad is not None}
        _clip(gradients.values(), _MAX_GRADIENT_NORM)
        for name, momentum in self._momenta.items():
            self._muon_update(self.masters[name], momentum, gradients[name], MATRIX_RATE * rate_scale)
        for name in self._others:
            self.masters[name].grad = gradients[name]
        for group in self._adam.param_groups:
            group["lr"] = OTHER_RATE * rate_scale
        self._adam.step()
        self._copy_back()

    @staticmethod
    def _muon_update(master: Tensor, momentum: Tensor, gradient: Tensor, rate: float) -> None:
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        direction = orthogonalised(gradient.lerp(momentum, _MOMENTUM))
        aspect = max(1.0, master.shape[0] / master.shape[1]) ** 0.5
        master.mul_(1 - rate * _DECAY).add_(direction, alpha=-rate * aspect)

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self.masters[name])
            weight.grad = None

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on exactly."""
        return {"masters": self.masters, "momenta": self._momenta, "adam": self._adam.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        for name, momentum in self._momenta.items():
            momentum.copy_(state["momenta"][name])
        self._adam.load_state_dict(state["adam"])
        self._copy_back()


def _clip(gradients: Iterable[Tensor], max_norm: float) -> None:
    found = list(gradients)
    norm = torch.stack([g.norm() for g in found]).norm()
    factor = min(1.0, max_norm / (float(norm) + 1e-6))
    for gradient in found:
        gradient.mul_(factor)
