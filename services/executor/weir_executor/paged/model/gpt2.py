"""GPT-2 (Radford et al., 2019): learned positions, layer norms, biases, weights kept with their inputs as rows.

embed + position ─▶ [ norm ─ attention ─ + ─ norm ─ mlp ─ + ] per layer ─▶ norm ─▶ the embedding again
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import Fields, LayerAttention, ModelConfig, dtype_name, even_head_dim
from weir_executor.paged.model.decoder_model import Attend, AttentionWeights, DecoderModel
from weir_executor.paged.model.layers import ACTIVATIONS, Linear, Norm, PlainMlp
from weir_executor.paged.model.loading import load_embedding, load_layer_norm, load_lm_head
from weir_executor.paged.model.weights import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpt2Config(ModelConfig):
    intermediate_size: int
    layer_norm_eps: float
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(AttentionWeights):
    attention_norm: Norm
    mlp_norm: Norm
    mlp: PlainMlp


class Gpt2Model(DecoderModel):
    def __init__(self, config: Gpt2Config, checkpoint: Checkpoint) -> None:
        self.config: Gpt2Config = config
        # The first checkpoints were saved without the language model's head, and without its prefix.
        base = "transformer." if "transformer.wte.weight" in checkpoint else ""
        self.embedding = load_embedding(config, checkpoint, f"{base}wte")
        self.position_embedding = checkpoint.tensor(f"{base}wpe.weight", (config.position_limit, config.hidden_size))
        self.layers = [_load_layer(config, checkpoint, f"{base}h.{index}") for index in range(config.num_layers)]
        self.norm = load_layer_norm(checkpoint, f"{base}ln_f", config.hidden_size, config.layer_norm_eps)
        self.lm_head = load_lm_head(config, checkpoint, "lm_head", self.embedding)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.embedding.index_select(0, token_ids) + self.position_embedding.index_select(0, positions)

    def run_layers(self, hidden: torch.Tensor, _: torch.Tensor, attend: Attend) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            hidden = hidden + layer.attend(index, self.config, layer.attention_norm(hidden), None, attend)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return hidden


def parse_gpt2(architecture: str, fields: Fields) -> Gpt2Config:
    num_layers, num_heads, hidden_size = fields.whole("n_layer"), fields.whole("n_head"), fields.whole("n_embd")
    head_dim = even_head_dim(hidden_size, num_heads)
    return Gpt2Config(
        architecture=architecture,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        attention=tuple(LayerAttention(_scale(fields, head_dim, index)) for index in range(num_layers)),
        position_limit=fields.whole("n_positions"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        dtype=dtype_name(fields),
        intermediate_size=fields.whole("n_inner", 4 * hidden_size),
        layer_norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.one_of("activation_function", tuple(sorted(ACTIVATIONS)), "gelu_new"),
    )


def load_gpt2(config: Gpt2Config, checkpoint: Checkpoint, _: int) -> Gpt2Model:
    return Gpt2Model(config, checkpoint)


def _scale(fields: Fields, head_dim: int, index: int) -> float:
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights", True) else 1.0
    return scale / (index + 1) if fields.flag("scale_attn_by_inverse_layer_idx", False) else scale


def _load_layer(config: Gpt2Config, checkpoint: Checkpoint, base: str) -> Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    return Layer(
        attention_norm=load_layer_norm(checkpoint, f"{base}.ln_1", hidden, config.layer_norm_eps),
        qkv=_load_transposed(checkpoint, f"{base}.attn.c_attn", 3 * hidden, hidden),
        output=_load_transposed(checkpoint, f"{base}.attn.c_proj", hidden, hidden),
        mlp_norm=load_layer_norm(checkpoint, f"{base}.ln_2", hidden, config.layer_norm_eps),
        mlp=PlainMlp(
            up=_load_transposed(checkpoint, f"{base}.mlp.c_fc", inner, hidden),
            down=_load_transposed(checkpoint, f"{base}.mlp.c_proj", hidden, inner),
            activation=ACTIVATIONS[config.activation],
        ),
    )


def _load_transposed(checkpoint: Checkpoint, name: str, rows: int, columns: int) -> Linear:
    """A projection to `rows` outputs from `columns` inputs, kept as [columns, rows]."""
    weight = checkpoint.weight(name, rows, columns, transposed=True)
    return checkpoint.make_linear(weight, checkpoint.tensor(f"{name}.bias", (rows,)))
