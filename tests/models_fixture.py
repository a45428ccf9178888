"""Tiny models with seeded random weights, one of each family, as checkpoints on disk. Needs no `transformers`."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCAB_SIZE = 320
EOS = 2
_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 20,
    "tie_word_embeddings": True,
}

# What each family's `config.json` says beyond `_SHAPE`; the older and the newer spelling of rotary options both occur.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama2": {**_LLAMA, "num_key_value_heads": 6, "rope_theta": 10000.0},
    "llama3": {**_LLAMA, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "llama_linear": {**_LLAMA, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_yarn": {**_LLAMA, "rope_parameters": _YARN_ROPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 24,
        "head_dim": 16,
        "rope_theta": 10000.0,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 32,
        "max_window_layers": 2,
        "rope_theta": 10000.0,
    },
    "qwen2_windows": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
        "rope_theta": 10000.0,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_theta": 10000.0,
    },
    "gemma2": {
        **_GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 6.0,
        "rope_theta": 10000.0,
    },
    "gemma3": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window_pattern": 3,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3_layer_types": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "tie_word_embeddings": False,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


@cache
def tiny_model(family: str, dtype: str = "float32") -> Path:
    """A tiny model of this family, made once per process and removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="weir-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return save_tiny_model(family, root / family, dtype=dtype)


def save_tiny_model(family: str, model_dir: Path, *, dtype: str = "float32", seed: int = 7) -> Path:
    """Weights are drawn wide, so that logits differ clearly and greedy decoding meets no ties."""
    config = {**_SHAPE, **FAMILIES[family], "dtype": dtype}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, shape, generator).to(getattr(torch, dtype)) for name, shape in weight_shapes(config)}
    model_dir.mkdir(parents=True)
    (model_dir / "config.json").write_text(json.dumps(config, indent=1))
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS]}))
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def weight_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes that a checkpoint of this configuration holds."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for index in range(config["num_hidden_layers"]):
        for name, shape in _layer_shapes(config):
            yield f"model.layers.{index}.{name}", shape
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _layer_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    wide, narrow = heads * head_dim, config["num_key_value_heads"] * head_dim
    attention_bias = config.get("attention_bias", False)
    qkv_bias = attention_bias or config["model_type"] == "qwen2"
    for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
        yield from _projection(f"self_attn.{part}_proj", rows, hidden, qkv_bias)
    yield from _projection("self_attn.o_proj", hidden, wide, attention_bias)
    for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        yield from _projection(f"mlp.{part}_proj", rows, columns, config.get("mlp_bias", False))
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if config["model_type"].startswith("gemma"):
        yield "pre_feedforward_layernorm.weight", (hidden,)
        yield "post_feedforward_layernorm.weight", (hidden,)
    if config["model_type"] in ("qwen3", "gemma3_text"):
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)


def _projection(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    centre = 1.0 if "norm" in name else 0.0
    return centre + torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
