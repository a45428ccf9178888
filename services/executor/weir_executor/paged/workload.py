"""What is to be computed, and with how much room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from weir_executor.paged.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and its limits, whoever computes it."""

    model_dir: Path
    model: ModelConfig
    dtype: torch.dtype
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    max_adapter_rank: int = 0  # 0: no adapters
    weight_bits: int = 0  # 0: weights are of the dtype, too; 8 or 4: whole numbers
