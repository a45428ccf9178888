"""Where the tests compute: on a CUDA device if there is one, else Triton's kernels run in its interpreter."""

from __future__ import annotations

import os

import torch

# Triton looks at this once, when it is imported, so it is said before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
