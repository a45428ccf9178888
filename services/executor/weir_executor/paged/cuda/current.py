"""The device that Triton launches on is the current one, whatever its arguments live on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def made_current(device: torch.device) -> AbstractContextManager[object]:
    """For as long as the context lasts. Nothing to do where the kernels are interpreted."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
