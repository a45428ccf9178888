"""Phi-3 and its kin (Phi-3.5, Phi-4): built like Llama, with fused projections, partial rotation and longrope."""

from __future__ import annotations

from typing import Any

from weir_executor.paged.model.config import Fields, layer_windows, rope_options, sliding_window
from weir_executor.paged.model.layers import Linear, Mlp
from weir_executor.paged.model.llama import Layer, LlamaConfig, LlamaModel, parse_llama_like
from weir_executor.paged.model.loading import load_linear, load_rms_norm, qkv_rows
from weir_executor.paged.model.weights import Checkpoint

_OLDER_NAMES_OF_LONGROPE = ("su", "yarn")


def parse_phi3(architecture: str, fields: Fields) -> LlamaConfig:
    windows = layer_windows(fields, fields.whole("num_hidden_layers"), sliding_window(fields, usually=True))
    return parse_llama_like(architecture, _in_llamas_words(fields), windows, partial_rotary=True)


def load_phi3(config: LlamaConfig, checkpoint: Checkpoint, max_model_len: int) -> LlamaModel:
    return LlamaModel(config, checkpoint, max_model_len, _load_layer)


def _in_llamas_words(fields: Fields) -> Fields:
    """The original length stands outside the rotary options, and longrope had other names before."""
    options: dict[str, Any] = rope_options(fields)
    kind = options.get("rope_type") or options.get("type") or "default"
    options["rope_type"] = "longrope" if kind in _OLDER_NAMES_OF_LONGROPE else kind
    if fields.get("original_max_position_embeddings") is not None:
        options["original_max_position_embeddings"] = fields.whole("original_max_position_embeddings")
    return Fields({**fields.raw, "rope_parameters": options})


def _load_layer(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Layer:
    base, hidden, inner = f"model.layers.{index}", config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_dim

    def projection(name: str, rows: int, columns: int) -> Linear:
        return load_linear(checkpoint, [f"{base}.{name}"], [rows], columns, bias=False)

    return Layer(
        attention_norm=load_rms_norm(checkpoint, f"{base}.input_layernorm", hidden, config.rms_norm_eps),
        qkv=projection("self_attn.qkv_proj", sum(qkv_rows(config)), hidden),
        output=projection("self_attn.o_proj", hidden, heads),
        mlp_norm=load_rms_norm(checkpoint, f"{base}.post_attention_layernorm", hidden, config.rms_norm_eps),
        mlp=Mlp(projection("mlp.gate_up_proj", 2 * inner, hidden), projection("mlp.down_proj", hidden, inner)),
    )
