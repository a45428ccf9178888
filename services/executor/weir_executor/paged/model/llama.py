"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3. What sets them apart is in `LlamaConfig`.

embed ─▶ [ norm ─ qkv ─ (q/k norm) ─ rotate ─ attention ─ output ─ + ─ norm ─ mlp ─ + ] per layer ─▶ norm ─▶ lm_head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import (
    Fields,
    LayerAttention,
    ModelConfig,
    ModelConfigError,
    RopeConfig,
    dtype_name,
    layer_windows,
    parse_rope,
    rope_options,
    sliding_window,
)
from weir_executor.paged.model.decoder_model import Attend, AttentionWeights, DecoderModel
from weir_executor.paged.model.experts import Experts, ExpertsConfig
from weir_executor.paged.model.layers import Mlp, Norm, RmsNorm, Rotation
from weir_executor.paged.model.loading import (
    load_embedding,
    load_gated_mlp,
    load_lm_head,
    load_qkv,
    load_rms_norm,
    load_summed_linear,
)
from weir_executor.paged.model.rope import rope_table
from weir_executor.paged.model.weights import Checkpoint

_QWEN_MAX_WINDOW_LAYERS = 28  # where transformers' Qwen configurations let windows begin when they do not say


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(ModelConfig):
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    experts: ExpertsConfig | None = None

    def kv_variant(self, max_model_len: int) -> str:
        variant = self.rope.variant(max_model_len)
        return variant and f",rope={variant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(AttentionWeights):
    attention_norm: Norm
    mlp_norm: Norm
    mlp: Mlp | Experts


class LlamaModel(DecoderModel):
    """The forward pass of all that are built like Llama. `load_layer` reads a layer as its checkpoint names it."""

    def __init__(
        self,
        config: LlamaConfig,
        checkpoint: Checkpoint,
        max_model_len: int,
        load_layer: Callable[[LlamaConfig, Checkpoint, int], Layer],
    ) -> None:
        self.config: LlamaConfig = config
        self.embedding = load_embedding(config, checkpoint, "model.embed_tokens")
        self.layers = [load_layer(config, checkpoint, index) for index in range(config.num_layers)]
        self.norm = load_rms_norm(checkpoint, "model.norm", config.hidden_size, config.rms_norm_eps)
        self.lm_head = load_lm_head(config, checkpoint, "lm_head", self.embedding)
        self.rope = rope_table(config.rope, max_model_len, checkpoint.device)  # [positions, 2, rope.dim / 2] float32

    def embed(self, token_ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.embedding.index_select(0, token_ids)

    def run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        rotation = Rotation.at(positions, self.rope, self.embedding.dtype)
        for index, layer in enumerate(self.layers):
            hidden = hidden + layer.attend(index, self.config, layer.attention_norm(hidden), rotation, attend)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return hidden


def parse_llama(architecture: str, fields: Fields) -> LlamaConfig:
    attention_bias = fields.flag("attention_bias", False)
    windows = layer_windows(fields, fields.whole("num_hidden_layers"), sliding_window(fields, usually=True))
    return parse_llama_like(architecture, fields, windows, qkv_bias=attention_bias, output_bias=attention_bias)


def parse_qwen2(architecture: str, fields: Fields) -> LlamaConfig:
    return parse_llama_like(architecture, fields, _qwen_windows(fields), qkv_bias=True)


def parse_qwen3(architecture: str, fields: Fields) -> LlamaConfig:
    bias = fields.flag("attention_bias", False)
    return parse_llama_like(architecture, fields, _qwen_windows(fields), qkv_bias=bias, output_bias=bias, qk_norm=True)


def load_llama(config: LlamaConfig, checkpoint: Checkpoint, max_model_len: int) -> LlamaModel:
    return LlamaModel(config, checkpoint, max_model_len, _load_layer)


def parse_llama_like(
    architecture: str,
    fields: Fields,
    windows: list[int | None],
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: bool = False,
    partial_rotary: bool = False,
) -> LlamaConfig:
    fields.one_of("hidden_act", ("silu",), "silu")
    num_heads, hidden_size = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    head_dim = fields.whole("head_dim", hidden_size // num_heads)
    rope = parse_rope(rope_options(fields), head_dim, fields.whole("max_position_embeddings"), _theta(fields))
    if rope.dim != head_dim and not partial_rotary:
        raise ModelConfigError(f"a partial rotary embedding is not known in a {architecture}")
    return LlamaConfig(
        architecture=architecture,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=len(windows),
        num_heads=num_heads,
        num_kv_heads=fields.whole("num_key_value_heads", num_heads),
        head_dim=head_dim,
        attention=tuple(LayerAttention(head_dim**-0.5, window) for window in windows),
        position_limit=rope.position_limit,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype_name(fields),
        intermediate_size=fields.whole("intermediate_size"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=qk_norm,
    )


def load_llama_layer(config: LlamaConfig, checkpoint: Checkpoint, index: int, mlp: Mlp | Experts) -> Layer:
    """All but the MLP is named alike in the whole family."""
    base = f"model.layers.{index}"
    heads = config.num_heads * config.head_dim
    return Layer(
        attention_norm=_load_norm(config, checkpoint, f"{base}.input_layernorm", config.hidden_size),
        qkv=load_qkv(config, checkpoint, f"{base}.self_attn", bias=config.qkv_bias),
        query_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.q_norm"),
        key_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.k_norm"),
        output=load_summed_linear(
            checkpoint, f"{base}.self_attn.o_proj", config.hidden_size, heads, bias=config.output_bias
        ),
        mlp_norm=_load_norm(config, checkpoint, f"{base}.post_attention_layernorm", config.hidden_size),
        mlp=mlp,
    )


def load_plain_mlp(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Mlp:
    base = f"model.layers.{index}.mlp"
    return load_gated_mlp(checkpoint, base, config.hidden_size, config.intermediate_size, bias=config.mlp_bias)


def _load_layer(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Layer:
    return load_llama_layer(config, checkpoint, index, load_plain_mlp(config, checkpoint, index))


def _load_norm(config: LlamaConfig, checkpoint: Checkpoint, name: str, width: int) -> RmsNorm:
    return load_rms_norm(checkpoint, name, width, config.rms_norm_eps)


def _load_head_norm(config: LlamaConfig, checkpoint: Checkpoint, name: str) -> RmsNorm | None:
    return _load_norm(config, checkpoint, name, config.head_dim) if config.qk_norm else None


def _qwen_windows(fields: Fields) -> list[int | None]:
    """The first layers see everything."""
    first = fields.whole("max_window_layers", _QWEN_MAX_WINDOW_LAYERS, least=0)
    window = sliding_window(fields, usually=False)
    return layer_windows(fields, fields.whole("num_hidden_layers"), window, lambda index: index >= first)


def _theta(fields: Fields) -> float:
    return fields.number("rope_theta", 10_000.0)
