"""From a checkpoint's names to layers: the shapes that every family's loader asks for.

Projections are stacked by their output rows. A loader says how many rows each has and how many columns all have, so a
damaged or mismatched tensor is named before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.layers import Activation, LayerNorm, Linear, Mlp, RmsNorm
from weir_executor.paged.model.weights import Checkpoint


def load_linear(
    checkpoint: Checkpoint, names: Sequence[str], rows: Sequence[int], columns: int, *, bias: bool
) -> Linear:
    """One projection, or several of the same input fused into one."""
    weight = checkpoint.weights(names, rows, columns)
    whole = checkpoint.make_linear(weight, checkpoint.biases(names, rows) if bias else None)
    return checkpoint.wrap(whole, names, rows, columns)


def load_summed_linear(checkpoint: Checkpoint, name: str, rows: int, columns: int, *, bias: bool) -> Linear:
    """A projection out of heads or features, which ranks may share: their results are summed, the bias added once."""
    shard = checkpoint.shard
    return shard.summed(load_linear(checkpoint, [name], [rows], columns, bias=bias and shard.adds_bias))


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
    summed: bool = True,
) -> Mlp:
    """Not `summed`: of several whose results are summed together."""
    gate, up, down = (f"{base}.{name}" for name in names)
    return Mlp(
        gate_up=load_linear(checkpoint, [gate, up], [inner, inner], hidden, bias=bias),
        down=(
            load_summed_linear(checkpoint, down, hidden, inner, bias=bias)
            if summed
            else load_linear(checkpoint, [down], [hidden], inner, bias=bias)
        ),
        activation=activation,
    )


def load_embedding(config: ModelConfig, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    shape = (config.vocab_size, config.hidden_size)
    shard = checkpoint.shard
    if not shard.holds_embedding and not (shard.holds_lm_head and config.tie_word_embeddings):
        return torch.empty(shape, dtype=checkpoint.dtype, device="meta")  # of another stage: a shape without memory
    return checkpoint.tensor(f"{name}.weight", shape)


def load_lm_head(config: ModelConfig, checkpoint: Checkpoint, name: str, embedding: torch.Tensor) -> Linear:
    """The embedding again where the two are tied."""
    shard = checkpoint.shard
    rows = shard.vocabulary(config.vocab_size)
    if not shard.holds_lm_head:
        return checkpoint.make_linear(
            torch.empty((config.vocab_size, config.hidden_size), dtype=checkpoint.dtype, device="meta"), None
        )
    if config.tie_word_embeddings:
        return shard.gathered(checkpoint.make_linear(embedding[rows], None), config.vocab_size)
    head = load_linear(checkpoint, [name], [rows.stop - rows.start], config.hidden_size, bias=False)
    return shard.gathered(head, config.vocab_size)


def load_rms_norm(checkpoint: Checkpoint, name: str, width: int, eps: float) -> RmsNorm:
    return RmsNorm(checkpoint.tensor(f"{name}.weight", (width,)), eps)


def load_layer_norm(checkpoint: Checkpoint, name: str, width: int, eps: float) -> LayerNorm:
    weight, bias = (checkpoint.tensor(f"{name}.{part}", (width,)) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, eps)
