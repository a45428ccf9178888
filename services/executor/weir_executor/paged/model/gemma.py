"""Gemma 2 and Gemma 3's text model: norms around every part, windows in most layers, capped scores.

embed · √hidden ─▶ [ norm ─ attention ─ norm ─ + ─ norm ─ mlp ─ norm ─ + ] per layer ─▶ norm ─▶ lm_head ─▶ cap
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
)
from weir_executor.paged.model.decoder_model import Attend, AttentionWeights, DecoderModel
from weir_executor.paged.model.layers import ACTIVATIONS, Mlp, Norm, OffsetRmsNorm, Rotation, soft_cap
from weir_executor.paged.model.loading import (
    load_embedding,
    load_gated_mlp,
    load_lm_head,
    load_qkv,
    load_summed_linear,
)
from weir_executor.paged.model.rope import rope_table
from weir_executor.paged.model.weights import Checkpoint

_ACTIVATION = "gelu_pytorch_tanh"
# What decoder and head are called: in a model that sees images too, before and since transformers 4.52, and alone.
_NAMES = (
    ("language_model.model", "language_model.lm_head"),
    ("model.language_model", "lm_head"),
    ("model", "lm_head"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(ModelConfig):
    intermediate_size: int
    rms_norm_eps: float
    windowed_rope: RopeConfig  # of layers that see a window
    full_rope: RopeConfig  # of layers that see everything
    qkv_bias: bool
    qk_norm: bool
    logit_cap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(AttentionWeights):
    attention_norm: Norm
    after_attention_norm: Norm
    mlp_norm: Norm
    after_mlp_norm: Norm
    mlp: Mlp


class GemmaModel(DecoderModel):
    def __init__(self, config: GemmaConfig, checkpoint: Checkpoint, max_model_len: int) -> None:
        self.config: GemmaConfig = config
        base, head = _names(checkpoint)
        self.embedding = load_embedding(config, checkpoint, f"{base}.embed_tokens")
        self.layers = [_load_layer(config, checkpoint, f"{base}.layers.{index}") for index in range(config.num_layers)]
        self.norm = _load_norm(config, checkpoint, f"{base}.norm", config.hidden_size)
        self.lm_head = load_lm_head(config, checkpoint, head, self.embedding)
        self._embedding_scale = torch.tensor(config.hidden_size**0.5).to(self.embedding)  # rounded as they are
        self._windowed_rope, self._full_rope = (
            rope_table(rope, max_model_len, checkpoint.device) for rope in (config.windowed_rope, config.full_rope)
        )

    def embed(self, token_ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.embedding.index_select(0, token_ids) * self._embedding_scale

    def run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        windowed, full = (
            Rotation.at(positions, table, self.embedding.dtype) for table in (self._windowed_rope, self._full_rope)
        )
        for index, layer in enumerate(self.layers):
            rotation = full if self.config.attention[index].window is None else windowed
            found = layer.attend(index, self.config, layer.attention_norm(hidden), rotation, attend)
            hidden = hidden + layer.after_attention_norm(found)
            hidden = hidden + layer.after_mlp_norm(layer.mlp(layer.mlp_norm(hidden)))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return soft_cap(super().logits(hidden), self.config.logit_cap)


def parse_gemma2(architecture: str, fields: Fields) -> GemmaConfig:
    """Every second layer sees everything."""
    head_dim, positions = fields.whole("head_dim", 256), fields.whole("max_position_embeddings", 8192)
    rope = parse_rope(rope_options(fields), head_dim, positions, fields.number("rope_theta", 10_000.0))
    return _parse(architecture, fields, rope, rope, period=2, attention_cap=50.0, logit_cap=30.0, vocab_size=256_000)


def parse_gemma3(architecture: str, fields: Fields) -> GemmaConfig:
    """Every sixth layer sees everything, and turns by a longer base."""
    head_dim, positions = fields.whole("head_dim", 256), fields.whole("max_position_embeddings", 131_072)
    windowed, full = _rope_options_by_kind(fields)
    return _parse(
        architecture,
        fields,
        parse_rope(windowed, head_dim, positions, fields.number("rope_local_base_freq", 10_000.0)),
        parse_rope(full, head_dim, positions, fields.number("rope_theta", 1_000_000.0)),
        period=fields.whole("sliding_window_pattern", 6),
        qk_norm=True,
        vocab_size=262_208,
    )


def parse_gemma3_with_images(architecture: str, fields: Fields) -> GemmaConfig:
    """The text model inside one that sees images too; it is served alone."""
    return parse_gemma3(architecture, Fields({"dtype": dtype_name(fields), **fields.inner("text_config").raw}))


def load_gemma(config: GemmaConfig, checkpoint: Checkpoint, max_model_len: int) -> GemmaModel:
    return GemmaModel(config, checkpoint, max_model_len)


def _parse(
    architecture: str,
    fields: Fields,
    windowed_rope: RopeConfig,
    full_rope: RopeConfig,
    *,
    period: int,
    vocab_size: int,
    attention_cap: float | None = None,
    logit_cap: float | None = None,
    qk_norm: bool = False,
) -> GemmaConfig:
    """Published configurations leave out what equals the family's defaults; they are those of transformers 5.23."""
    _refuse_what_is_not_computed(fields)
    num_layers, window = fields.whole("num_hidden_layers", 26), fields.whole("sliding_window", 4096)
    windows = layer_windows(fields, num_layers, window, lambda index: (index + 1) % period != 0)
    scale = fields.positive("query_pre_attn_scalar", 256) ** -0.5
    cap = fields.optional_number("attn_logit_softcapping", attention_cap)
    return GemmaConfig(
        architecture=architecture,
        vocab_size=fields.whole("vocab_size", vocab_size),
        hidden_size=fields.whole("hidden_size", 2304),
        num_layers=num_layers,
        num_heads=fields.whole("num_attention_heads", 8),
        num_kv_heads=fields.whole("num_key_value_heads", 4),
        head_dim=fields.whole("head_dim", 256),
        attention=tuple(LayerAttention(scale, window, cap) for window in windows),
        position_limit=full_rope.position_limit,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        dtype=dtype_name(fields),
        intermediate_size=fields.whole("intermediate_size", 9216),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        windowed_rope=windowed_rope,
        full_rope=full_rope,
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm=qk_norm,
        logit_cap=fields.optional_number("final_logit_softcapping", logit_cap),
    )


def _refuse_what_is_not_computed(fields: Fields) -> None:
    fields.one_of("hidden_activation", (_ACTIVATION,), _ACTIVATION)
    if fields.flag("use_bidirectional_attention", False):
        raise ModelConfigError("attention to later tokens (use_bidirectional_attention) is not known here")


def _rope_options_by_kind(fields: Fields) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of windowed and of full layers: `rope_parameters` names both; the older `rope_scaling` is for full ones only."""
    by_kind = fields.inner("rope_parameters")
    full = {**fields.inner("rope_scaling").raw, **by_kind.inner("full_attention").raw}
    return by_kind.inner("sliding_attention").raw, full


def _names(checkpoint: Checkpoint) -> tuple[str, str]:
    """Those that are there; the last ones are asked for, and missed, where none are."""
    return next((names for names in _NAMES if f"{names[0]}.embed_tokens.weight" in checkpoint), _NAMES[-1])


def _load_layer(config: GemmaConfig, checkpoint: Checkpoint, base: str) -> Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    return Layer(
        attention_norm=_load_norm(config, checkpoint, f"{base}.input_layernorm", hidden),
        qkv=load_qkv(config, checkpoint, f"{base}.self_attn", bias=config.qkv_bias),
        query_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.q_norm"),
        key_norm=_load_head_norm(config, checkpoint, f"{base}.self_attn.k_norm"),
        output=load_summed_linear(
            checkpoint,
            f"{base}.self_attn.o_proj",
            hidden,
            config.num_heads * config.head_dim,
            bias=config.qkv_bias,
        ),
        after_attention_norm=_load_norm(config, checkpoint, f"{base}.post_attention_layernorm", hidden),
        mlp_norm=_load_norm(config, checkpoint, f"{base}.pre_feedforward_layernorm", hidden),
        mlp=load_gated_mlp(checkpoint, f"{base}.mlp", hidden, inner, activation=ACTIVATIONS[_ACTIVATION]),
        after_mlp_norm=_load_norm(config, checkpoint, f"{base}.post_feedforward_layernorm", hidden),
    )


def _load_norm(config: GemmaConfig, checkpoint: Checkpoint, name: str, width: int) -> OffsetRmsNorm:
    return OffsetRmsNorm.of(checkpoint.tensor(f"{name}.weight", (width,)), config.rms_norm_eps)


def _load_head_norm(config: GemmaConfig, checkpoint: Checkpoint, name: str) -> OffsetRmsNorm | None:
    return _load_norm(config, checkpoint, name, config.head_dim) if config.qk_norm else None
