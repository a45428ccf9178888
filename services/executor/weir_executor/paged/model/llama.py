"""One decoder for the Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3. What sets them apart is in `ModelConfig`.

embed ─▶ [ norm ─ qkv ─ (q/k norm) ─ rotate ─ attention ─ output ─ + ─ norm ─ mlp ─ + ] per layer ─▶ norm ─▶ lm_head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.layers import Linear, Mlp, RmsNorm, Rotation, linear
from weir_executor.paged.model.rope import rope_table
from weir_executor.paged.model.weights import Checkpoint

# (layer index, q, k, v) → the heads' outputs; all [tokens, heads, head_dim]. Writes k and v to the cache on the way.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    attention_norm: RmsNorm
    qkv: Linear
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    output: Linear
    mlp_norm: RmsNorm
    mlp: Mlp


class LlamaModel:
    """Weights and the forward pass. Knows positions and heads; how keys and values are kept is `Attend`'s affair."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, max_model_len: int, device: torch.device) -> None:
        self.config = config
        self.embedding = checkpoint.tensor("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        self.layers = [_load_layer(config, checkpoint, index) for index in range(config.num_layers)]
        self.norm = _load_norm(config, checkpoint, "model.norm", config.hidden_size)
        self.lm_head = self._load_lm_head(checkpoint)
        self._rope = rope_table(config, max_model_len, device)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Hidden states of all tokens, before the last norm."""
        rotation = self._rotation(positions)
        hidden = self.embedding.index_select(0, token_ids)
        for index, layer in enumerate(self.layers):
            hidden = hidden + self._attention(index, layer, layer.attention_norm(hidden), rotation, attend)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the given rows only: the vocabulary is the widest projection of all. In float32, for sampling."""
        return self.lm_head(self.norm(hidden)).float()

    def _attention(
        self, index: int, layer: Layer, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        config = self.config
        heads = layer.qkv(hidden).view(hidden.shape[0], -1, config.head_dim)
        turning, values = heads[:, : -config.num_kv_heads], heads[:, -config.num_kv_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = turning[:, : config.num_heads], turning[:, config.num_heads :]
            turning = torch.cat((layer.query_norm(queries), layer.key_norm(keys)), dim=1)
        turned = rotation(turning)
        queries, keys = turned[:, : config.num_heads], turned[:, config.num_heads :]
        return layer.output(attend(index, queries, keys, values).flatten(1))

    def _rotation(self, positions: torch.Tensor) -> Rotation:
        rows = self._rope.index_select(0, positions).to(self.embedding.dtype)
        return Rotation.of(rows[:, :1], rows[:, 1:])

    def _load_lm_head(self, checkpoint: Checkpoint) -> Linear:
        if self.config.tie_word_embeddings:
            return linear(self.embedding)
        return linear(checkpoint.tensor("lm_head.weight", (self.config.vocab_size, self.config.hidden_size)))


def load_model(
    model_dir: Path, config: ModelConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> LlamaModel:
    """Read the weights. Raises `ModelLoadError` naming the file and tensor that are wrong."""
    with Checkpoint(model_dir, dtype, device) as checkpoint:
        return LlamaModel(config, checkpoint, max_model_len, device)


def _load_layer(config: ModelConfig, checkpoint: Checkpoint, index: int) -> Layer:
    base = f"model.layers.{index}"
    return Layer(
        attention_norm=_load_norm(config, checkpoint, f"{base}.input_layernorm", config.hidden_size),
        qkv=_load_qkv(config, checkpoint, f"{base}.self_attn"),
        query_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.q_norm"),
        key_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.k_norm"),
        output=_load_linear(
            checkpoint,
            [f"{base}.self_attn.o_proj"],
            [config.hidden_size],
            config.num_heads * config.head_dim,
            bias=config.output_bias,
        ),
        mlp_norm=_load_norm(config, checkpoint, f"{base}.post_attention_layernorm", config.hidden_size),
        mlp=_load_mlp(config, checkpoint, f"{base}.mlp"),
    )


def _load_qkv(config: ModelConfig, checkpoint: Checkpoint, base: str) -> Linear:
    names = [f"{base}.{part}_proj" for part in ("q", "k", "v")]
    rows = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    return _load_linear(checkpoint, names, rows, config.hidden_size, bias=config.qkv_bias)


def _load_mlp(config: ModelConfig, checkpoint: Checkpoint, base: str) -> Mlp:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    return Mlp(
        gate_up=_load_linear(checkpoint, [f"{base}.gate_proj", f"{base}.up_proj"], [inner, inner], hidden, bias=bias),
        down=_load_linear(checkpoint, [f"{base}.down_proj"], [hidden], inner, bias=bias),
    )


def _load_linear(checkpoint: Checkpoint, names: list[str], rows: list[int], columns: int, *, bias: bool) -> Linear:
    weight = checkpoint.concatenated([f"{name}.weight" for name in names], rows, (columns,))
    return linear(weight, checkpoint.concatenated([f"{name}.bias" for name in names], rows) if bias else None)


def _load_norm(config: ModelConfig, checkpoint: Checkpoint, name: str, width: int) -> RmsNorm:
    return RmsNorm(checkpoint.tensor(f"{name}.weight", (width,)), config.rms_norm_eps)


def _load_head_norm(config: ModelConfig, checkpoint: Checkpoint, name: str) -> RmsNorm | None:
    return _load_norm(config, checkpoint, name, config.head_dim) if config.qk_norm else None
