"""The model as both of transformers' contenders load it."""

from __future__ import annotations

import os
from pathlib import Path

from bench.contenders.serving import THREADS


def load(directory: Path):  # type: ignore[no-untyped-def]  # transformers has no types
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
