"""`config.json` → how many weights a model has, of what kinds, and what of a token its cache keeps. Pure.

The families are those of `paged/model/`; a test holds the two equal, weight by weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# From this layer on windows apply where a Qwen configuration does not say.
_QWEN_FIRST_WINDOW = 28


class UnknownShapeError(ValueError):
    """The configuration is missing, damaged, or of an architecture that is not known here."""


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one family's weights apart. Every linear layer counts for itself, whatever is fused when it is used."""

    norms: int = 2  # per layer, as wide as the hidden state
    norm_bias: bool = False
    gated: bool = True  # the MLP has three matrices
    qk_norm: bool = False
    qkv_bias: bool | None = None  # None: as `attention_bias` says
    other_bias: bool | None = None  # of attention's output and the MLP
    ties: bool = False  # the output head is the embedding, unless told otherwise
    window_every: int = 1  # the layers without a window are every so many; 1: there are none
    windows_usually: bool = True  # whether a window that is named is used
    windows_late: bool = False  # only from `max_window_layers` on


_LLAMA = Family()
_GEMMA3 = Family(norms=4, qk_norm=True, ties=True, window_every=6)
FAMILIES: Mapping[str, Family] = {
    "Gemma2ForCausalLM": Family(norms=4, ties=True, window_every=2),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "GPT2LMHeadModel": Family(norm_bias=True, gated=False, qkv_bias=True, other_bias=True, ties=True),
    "GPTNeoXForCausalLM": Family(norm_bias=True, gated=False),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Family(qkv_bias=True, windows_usually=False, windows_late=True),
    "Qwen3ForCausalLM": Family(qk_norm=True, windows_usually=False, windows_late=True),
    "Qwen3MoeForCausalLM": Family(qk_norm=True, windows_usually=False),
}

# What published configurations leave out, because it is usual in the family.
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}
_GEMMA3_USUALLY = {**_GEMMA, "vocab_size": 262_208, "max_position_embeddings": 131_072}
_USUALLY: Mapping[str, Mapping[str, Any]] = {
    "Gemma2ForCausalLM": {**_GEMMA, "vocab_size": 256_000, "max_position_embeddings": 8192},
    "Gemma3ForCausalLM": _GEMMA3_USUALLY,
    "Gemma3ForConditionalGeneration": _GEMMA3_USUALLY,
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int  # tokens
    windows: tuple[int | None, ...]  # of each layer: the newest tokens that it sees; None: all
    dtype: str
    linear_weights: int  # of the layers' matrices: what quantization narrows
    embedding_weights: int
    head_weights: int  # 0: the output head is the embedding
    other_weights: int  # norms, biases, positions, routers


def read_shape(model: Path) -> ModelShape:
    """Of a model directory or a `config.json`. Raises UnknownShapeError."""
    path = model / "config.json" if model.is_dir() else model
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return model_shape(raw)
    except (OSError, ValueError) as error:
        raise UnknownShapeError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UnknownShapeError(f"{path}: {type(error).__name__}: {error}") from error


def model_shape(raw: Mapping[str, Any]) -> ModelShape:
    architecture = (raw.get("architectures") or ["(none)"])[0]
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownShapeError(f"architecture {architecture!r} is not known here; known: {known}")
    family = FAMILIES[architecture]
    config = _in_llamas_words({**_USUALLY.get(architecture, {}), **raw})
    layers, hidden, vocab = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv_heads = heads if architecture == "GPTNeoXForCausalLM" else config.get("num_key_value_heads") or heads
    mlp_linear, mlp_other = _mlps(config, family, layers, hidden)
    tied = config.get("tie_word_embeddings", family.ties)
    return ModelShape(
        architecture=architecture,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_model_len=config["max_position_embeddings"],
        windows=tuple(_windows(config, family, layers)),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        linear_weights=layers * 2 * hidden * head_dim * (heads + kv_heads) + mlp_linear,
        embedding_weights=vocab * hidden,
        head_weights=0 if tied else vocab * hidden,
        other_weights=_norms(family, layers, hidden, head_dim)
        + layers * _attention_biases(config, family, hidden, head_dim * heads, head_dim * kv_heads)
        + mlp_other
        + (config["max_position_embeddings"] * hidden if architecture == "GPT2LMHeadModel" else 0),
    )


def _in_llamas_words(raw: Mapping[str, Any]) -> dict[str, Any]:
    """GPT-2 has its own; of a model that sees images too, the text model inside is served alone."""
    if "text_config" in raw:
        return {**raw, **raw["text_config"], "architectures": raw["architectures"]}
    if "n_embd" not in raw:
        return dict(raw)
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd"}
    inner = raw.get("n_inner") or 4 * raw["n_embd"]
    own = {name: raw[theirs] for name, theirs in names.items()}
    return {**raw, **own, "max_position_embeddings": raw["n_positions"], "intermediate_size": inner}


def _norms(family: Family, layers: int, hidden: int, head_dim: int) -> int:
    per_norm = hidden * (2 if family.norm_bias else 1)
    return (layers * family.norms + 1) * per_norm + (layers * 2 * head_dim if family.qk_norm else 0)


def _attention_biases(config: Mapping[str, Any], family: Family, hidden: int, wide: int, narrow: int) -> int:
    """Of one layer; `wide` are all query heads, `narrow` all key heads."""
    default = bool(config.get("attention_bias", not family.gated))
    qkv = default if family.qkv_bias is None else family.qkv_bias
    output = default if family.other_bias is None else family.other_bias
    return (wide + 2 * narrow if qkv else 0) + (hidden if output else 0)


def _mlps(config: Mapping[str, Any], family: Family, layers: int, hidden: int) -> tuple[int, int]:
    """Of all layers: what is in matrices of MLPs, and the rest: biases and routers."""
    inner, matrices = config["intermediate_size"], 3 if family.gated else 2
    sparse = _expert_layers(config, layers)
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    expert_inner = config.get("moe_intermediate_size") or inner
    has_bias = config.get("mlp_bias", False) if family.gated else True
    biases = inner * (matrices - 1) + hidden if has_bias else 0
    linear = (layers - sparse) * matrices * hidden * inner + sparse * experts * matrices * hidden * expert_inner
    return linear, (layers - sparse) * biases + sparse * experts * hidden


def _expert_layers(config: Mapping[str, Any], layers: int) -> int:
    match (config.get("architectures") or [""])[0]:
        case "MixtralForCausalLM":
            return layers
        case "Qwen3MoeForCausalLM":
            step, plain = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
            return sum((index + 1) % step == 0 and index not in plain for index in range(layers))
    return 0


def _windows(config: Mapping[str, Any], family: Family, layers: int) -> list[int | None]:
    window = config.get("sliding_window")
    if not window or not config.get("use_sliding_window", family.windows_usually):
        return [None] * layers
    kinds = config.get("layer_types")
    if kinds:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    first = config.get("max_window_layers", _QWEN_FIRST_WINDOW) if family.windows_late else 0
    every = config.get("sliding_window_pattern") or family.window_every
    return [window if index >= first and (every == 1 or (index + 1) % every) else None for index in range(layers)]
