"""Mixtral: Mistral with eight MLPs per layer, of which a token passes through two."""

from __future__ import annotations

from dataclasses import replace

from weir_executor.paged.model.config import Fields
from weir_executor.paged.model.experts import ExpertsConfig, load_experts
from weir_executor.paged.model.llama import Layer, LlamaConfig, LlamaModel, load_llama_layer, parse_llama
from weir_executor.paged.model.weights import Checkpoint

_NAMES = ("w1", "w3", "w2")  # gate, up, down


def parse_mixtral(architecture: str, fields: Fields) -> LlamaConfig:
    config = parse_llama(architecture, fields)
    experts = ExpertsConfig(
        count=fields.whole("num_local_experts", 8),
        per_token=fields.whole("num_experts_per_tok", 2),
        intermediate_size=config.intermediate_size,
        shares_sum_to_one=True,
        layers=frozenset(range(config.num_layers)),
    )
    return replace(config, experts=experts)


def load_mixtral(config: LlamaConfig, checkpoint: Checkpoint, max_model_len: int) -> LlamaModel:
    return LlamaModel(config, checkpoint, max_model_len, _load_layer)


def _load_layer(config: LlamaConfig, checkpoint: Checkpoint, index: int) -> Layer:
    assert config.experts is not None
    base = f"model.layers.{index}.block_sparse_moe"
    experts = load_experts(config.experts, checkpoint, base, config.hidden_size, _NAMES)
    return load_llama_layer(config, checkpoint, index, experts)
