"""From a checkpoint's names to layers: the shapes that every family's loader asks for.

Projections are stacked by their output rows. A loader says how many rows each has and how many columns all have, so a
damaged or mismatched tensor is named before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.layers import Activation, LayerNorm, Linear, Mlp, RmsNorm, linear
from weir_executor.paged.model.weights import Checkpoint


def load_linear(
    checkpoint: Checkpoint, names: Sequence[str], rows: Sequence[int], columns: int, *, bias: bool
) -> Linear:
    """One projection, or several of the same input fused into one."""
    weight = checkpoint.concatenated([f"{name}.weight" for name in names], rows, (columns,))
    return linear(weight, checkpoint.concatenated([f"{name}.bias" for name in names], rows) if bias else None)


def load_qkv(config: ModelConfig, checkpoint: Checkpoint, base: str, *, bias: bool) -> Linear:
    """Of a checkpoint that keeps queries, keys and values apart."""
    names = [f"{base}.{part}_proj" for part in ("q", "k", "v")]
    return load_linear(checkpoint, names, qkv_rows(config), config.hidden_size, bias=bias)


def qkv_rows(config: ModelConfig) -> list[int]:
    return [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]


def load_gated_mlp(
    checkpoint: Checkpoint,
    base: str,
    hidden: int,
    inner: int,
    *,
    bias: bool = False,
    activation: Activation = functional.silu,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Mlp:
    gate, up, down = (f"{base}.{name}" for name in names)
    return Mlp(
        gate_up=load_linear(checkpoint, [gate, up], [inner, inner], hidden, bias=bias),
        down=load_linear(checkpoint, [down], [hidden], inner, bias=bias),
        activation=activation,
    )


def load_embedding(config: ModelConfig, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.tensor(f"{name}.weight", (config.vocab_size, config.hidden_size))


def load_lm_head(config: ModelConfig, checkpoint: Checkpoint, name: str, embedding: torch.Tensor) -> Linear:
    """The embedding again where the two are tied."""
    if config.tie_word_embeddings:
        return linear(embedding)
    return load_linear(checkpoint, [name], [config.vocab_size], config.hidden_size, bias=False)


def load_rms_norm(checkpoint: Checkpoint, name: str, width: int, eps: float) -> RmsNorm:
    return RmsNorm(checkpoint.tensor(f"{name}.weight", (width,)), eps)


def load_layer_norm(checkpoint: Checkpoint, name: str, width: int, eps: float) -> LayerNorm:
    weight, bias = (checkpoint.tensor(f"{name}.{part}", (width,)) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, eps)
