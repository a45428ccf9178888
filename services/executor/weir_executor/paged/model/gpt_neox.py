"""GPT-NeoX and its kin (Pythia, Dolly, RedPajama): attention and MLP side by side, layer norms, biases.

embed ─▶ [ + attention(norm(·)) + mlp(norm(·)) ] per layer ─▶ norm ─▶ embed_out
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import (
    Fields,
    LayerAttention,
    ModelConfig,
    RopeConfig,
    dtype_name,
    even_head_dim,
    parse_rope,
    rope_options,
)
from weir_executor.paged.model.decoder_model import Attend, AttentionWeights, DecoderModel
from weir_executor.paged.model.layers import ACTIVATIONS, Linear, Norm, PlainMlp, Rotation
from weir_executor.paged.model.loading import load_embedding, load_layer_norm, load_linear, load_lm_head
from weir_executor.paged.model.rope import rope_table
from weir_executor.paged.model.weights import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class GptNeoxConfig(ModelConfig):
    intermediate_size: int
    layer_norm_eps: float
    rope: RopeConfig
    attention_bias: bool
    activation: str
    parallel_residual: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(AttentionWeights):
    attention_norm: Norm
    mlp_norm: Norm
    mlp: PlainMlp


class GptNeoxModel(DecoderModel):
    def __init__(self, config: GptNeoxConfig, checkpoint: Checkpoint, max_model_len: int) -> None:
        self.config: GptNeoxConfig = config
        self.embedding = load_embedding(config, checkpoint, "gpt_neox.embed_in")
        self.layers = [_load_layer(config, checkpoint, index) for index in range(config.num_layers)]
        self.norm = load_layer_norm(checkpoint, "gpt_neox.final_layer_norm", config.hidden_size, config.layer_norm_eps)
        self.lm_head = load_lm_head(config, checkpoint, "embed_out", self.embedding)
        self._rope = rope_table(config.rope, max_model_len, checkpoint.device)

    def embed(self, token_ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.embedding.index_select(0, token_ids)

    def run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        rotation = Rotation.at(positions, self._rope, self.embedding.dtype)
        for index, layer in enumerate(self.layers):
            attended = hidden + layer.attend(index, self.config, layer.attention_norm(hidden), rotation, attend)
            before_mlp = hidden if self.config.parallel_residual else attended
            hidden = attended + layer.mlp(layer.mlp_norm(before_mlp))
        return hidden


def parse_gpt_neox(architecture: str, fields: Fields) -> GptNeoxConfig:
    num_layers, num_heads = fields.whole("num_hidden_layers"), fields.whole("num_attention_heads")
    hidden_size = fields.whole("hidden_size")
    head_dim = even_head_dim(hidden_size, num_heads)
    options = {"partial_rotary_factor": fields.number("rotary_pct", 0.25), **rope_options(fields)}
    theta = fields.number("rotary_emb_base", 10_000.0)
    rope = parse_rope(options, head_dim, fields.whole("max_position_embeddings"), theta)
    return GptNeoxConfig(
        architecture=architecture,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        attention=(LayerAttention(head_dim**-0.5),) * num_layers,
        position_limit=rope.position_limit,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype_name(fields),
        intermediate_size=fields.whole("intermediate_size"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        rope=rope,
        attention_bias=fields.flag("attention_bias", True),
        activation=fields.one_of("hidden_act", tuple(sorted(ACTIVATIONS)), "gelu"),
        parallel_residual=fields.flag("use_parallel_residual", True),
    )


def load_gpt_neox(config: GptNeoxConfig, checkpoint: Checkpoint, max_model_len: int) -> GptNeoxModel:
    return GptNeoxModel(config, checkpoint, max_model_len)


def _load_layer(config: GptNeoxConfig, checkpoint: Checkpoint, index: int) -> Layer:
    base, hidden, inner = f"gpt_neox.layers.{index}", config.hidden_size, config.intermediate_size
    return Layer(
        attention_norm=load_layer_norm(checkpoint, f"{base}.input_layernorm", hidden, config.layer_norm_eps),
        qkv=_load_qkv(config, checkpoint, f"{base}.attention.query_key_value"),
        output=load_linear(checkpoint, [f"{base}.attention.dense"], [hidden], hidden, bias=config.attention_bias),
        mlp_norm=load_layer_norm(checkpoint, f"{base}.post_attention_layernorm", hidden, config.layer_norm_eps),
        mlp=PlainMlp(
            up=load_linear(checkpoint, [f"{base}.mlp.dense_h_to_4h"], [inner], hidden, bias=True),
            down=load_linear(checkpoint, [f"{base}.mlp.dense_4h_to_h"], [hidden], inner, bias=True),
            activation=ACTIVATIONS[config.activation],
        ),
    )


def _load_qkv(config: GptNeoxConfig, checkpoint: Checkpoint, name: str) -> Linear:
    """The checkpoint has each head's query, key and value rows together; we have all queries first."""
    hidden = config.hidden_size

    def by_part(rows: torch.Tensor) -> torch.Tensor:
        parts = rows.view(config.num_heads, 3, config.head_dim, -1).transpose(0, 1)
        return parts.reshape(rows.shape)

    weight = by_part(checkpoint.weight(name, 3 * hidden, hidden))
    bias = by_part(checkpoint.tensor(f"{name}.bias", (3 * hidden,))) if config.attention_bias else None
    return checkpoint.make_linear(weight, bias)
