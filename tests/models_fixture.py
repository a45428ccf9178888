"""Tiny models with seeded random weights, one of each family, as checkpoints on disk. Needs no `transformers`."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from checkpoint_shapes import weight_shapes

VOCAB_SIZE = 320
EOS = 2
_TOKENS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": EOS}
_SHAPE: Mapping[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    **_TOKENS,
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
_LLAMA = {**_SHAPE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}

_PHI3 = {**_SHAPE, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}
_GPT2 = {
    **_TOKENS,
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 512,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
_NEOX = {
    **_TOKENS,
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000,
    "tie_word_embeddings": False,
}
_GEMMA = {
    **_SHAPE,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 20,
    "tie_word_embeddings": True,
}

# What each family's `config.json` says; the older and the newer spelling of rotary options both occur.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama2": {**_LLAMA, "num_key_value_heads": 6, "rope_theta": 10000.0},
    "llama3": {**_LLAMA, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "llama_linear": {**_LLAMA, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_yarn": {**_LLAMA, "rope_parameters": _YARN_ROPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {
        **_SHAPE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 24,
        "head_dim": 16,
        "rope_theta": 10000.0,
    },
    "qwen2": {
        **_SHAPE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 32,
        "max_window_layers": 2,
        "rope_theta": 10000.0,
    },
    "qwen2_windows": {
        **_SHAPE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
        "rope_theta": 10000.0,
    },
    "qwen3": {
        **_SHAPE,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_theta": 10000.0,
    },
    "mixtral": {
        **_SHAPE,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "rope_theta": 1000000.0,
    },
    "qwen3_moe": {
        **_SHAPE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "rope_theta": 10000.0,
    },
    "qwen3_moe_unnormed": {
        **_SHAPE,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 30,
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
    "phi3": {
        **_PHI3,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 512,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]},
    },
    # An original length of one: every context is a long one, in transformers too.
    "phi3_long": {
        **_PHI3,
        "rope_theta": 10000.0,
        "sliding_window": 40,
        "original_max_position_embeddings": 1,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [1.5, 2.0, 4.0, 8.0],
            "attention_factor": 1.2,
        },
    },
    "gpt_neox": {**_NEOX, "rotary_pct": 0.5, "use_parallel_residual": True, "hidden_act": "gelu"},
    "gpt_neox_serial": {
        **_NEOX,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
        "use_parallel_residual": False,
        "attention_bias": False,
        "hidden_act": "gelu_new",
    },
    "gpt2": _GPT2,
    "gpt2_scaled": {**_GPT2, "n_inner": 96, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
}


@cache
def tiny_model(family: str, dtype: str = "float32") -> Path:
    """A tiny model of this family, made once per process and removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="weir-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return save_tiny_model(family, root / family, dtype=dtype)


def save_tiny_model(family: str, model_dir: Path, *, dtype: str = "float32", seed: int = 7) -> Path:
    return save_model(FAMILIES[family], model_dir, dtype=dtype, seed=seed)


def save_model(config: Mapping[str, Any], model_dir: Path, *, dtype: str = "float32", seed: int = 7) -> Path:
    """Weights are drawn wide, so that logits differ clearly and greedy decoding meets no ties."""
    config = {**config, "dtype": dtype}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, shape, generator).to(getattr(torch, dtype)) for name, shape in weight_shapes(config)}
    model_dir.mkdir(parents=True)
    (model_dir / "config.json").write_text(json.dumps(config, indent=1))
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS]}))
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    centre = 1.0 if name.endswith("weight") and ("norm" in name or ".ln_" in name) else 0.0
    return centre + torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
