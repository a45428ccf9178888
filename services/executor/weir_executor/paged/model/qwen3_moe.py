"""Qwen3-MoE: Qwen3 with many small MLPs in most layers, of which a token passes through a few."""

from __future__ import annotations

from dataclasses import replace

from weir_executor.paged.model.config import Fields, layer_windows, sliding_window
from weir_executor.paged.model.experts import Experts, ExpertsConfig, load_experts
from weir_executor.paged.model.layers import Mlp
from weir_executor.paged.model.llama import (
    Layer,
    LlamaConfig,
    LlamaModel,
    load_llama_layer,
    load_plain_mlp,
    parse_llama_like,
)
from weir_executor.paged.model.weights import Checkpoint

_NAMES = ("gate_proj", "up_proj", "down_proj")


def parse_qwen3_moe(architecture: str, fields: Fields) -> LlamaConfig:
    windows = layer_windows(fields, fields.whole("num_hidden_layers"), sliding_window(fields, usually=False))
    bias = fields.flag("attention_bias", False)
    config = parse_llama_like(architecture, fields, windows, qkv_bias=bias, output_bias=bias, qk_norm=True)
    experts = ExpertsConfig(
        count=fields.whole("num_experts"),
        per_token=fields.whole("num_experts_per_tok"),
        intermediate_size=fields.whole("moe_intermediate_size"),
        shares_sum_to_one=fields.flag("norm_topk_prob", False),
        layers=_expert_layers(fields, config.num_layers),
    )
    return replace(config, experts=experts)


def load_qwen3_moe(config: LlamaConfig, checkpoint: Checkpoint, max_model_len: int) -> LlamaModel:
    return LlamaModel(config, checkpoint, max_model_len, _load_layer)


def _expert_layers(fields: Fields, num_layers: int) -> frozenset[int]:
    """Every so many layers, but for those that are named."""
    step, plain = fields.whole("decoder_sparse_step", 1), fields.items("mlp_only_layers")
    return frozenset(index for index in range(num_layers) if (index + 1) % step == 0 and index not in plain)


def _load_layer(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Layer:
    return load_llama_layer(config, checkpoint, index, _load_mlp(config, checkpoint, index))


def _load_mlp(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Mlp | Experts:
    assert config.experts is not None
    if index not in config.experts.layers:
        return load_plain_mlp(config, checkpoint, index)
    return load_experts(config.experts, checkpoint, f"model.layers.{index}.mlp", config.hidden_size, _NAMES)
