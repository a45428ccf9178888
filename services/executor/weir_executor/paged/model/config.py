"""`config.json` → a typed, frozen description of a Llama-family decoder. What we cannot compute is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `architectures[0]` → what sets that family apart from Llama.
_QKV_BIAS, _QK_NORM = "qkv_bias", "qk_norm"
_FAMILIES: Mapping[str, frozenset[str]] = {
    "LlamaForCausalLM": frozenset(),
    "MistralForCausalLM": frozenset(),
    "Qwen2ForCausalLM": frozenset({_QKV_BIAS}),
    "Qwen3ForCausalLM": frozenset({_QK_NORM}),
}
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


class ModelConfigError(ValueError):
    """The model's configuration is missing, damaged, or describes what this engine cannot compute."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn queries and keys. `options` are the scaling's own numbers, by their names in `config.json`."""

    theta: float
    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    sliding_window: int | None  # a token sees this many newest tokens, itself included
    dtype: str
    eos_token_ids: frozenset[int]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim {self.head_dim} is odd, and rotary embedding turns pairs")


def load_config(model_dir: Path) -> ModelConfig:
    """Read `config.json` and, for the end-of-sequence ids, `generation_config.json`."""
    raw = _read_json(model_dir / "config.json")
    try:
        return parse_config(raw, _generation_eos(model_dir, raw))
    except KeyError as error:
        raise ModelConfigError(f"{model_dir / 'config.json'}: {error.args[0]!r} is missing") from error


def parse_config(raw: Mapping[str, Any], eos_token_ids: frozenset[int]) -> ModelConfig:
    architecture, traits = _family(raw)
    attention_bias = bool(raw.get("attention_bias", False))
    num_heads = int(raw["num_attention_heads"])
    return ModelConfig(
        architecture=architecture,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or raw["hidden_size"] // num_heads),
        max_position_embeddings=int(raw["max_position_embeddings"]),
        rms_norm_eps=float(raw["rms_norm_eps"]),
        rope=_rope(raw),
        qkv_bias=attention_bias or _QKV_BIAS in traits,
        output_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=_QK_NORM in traits,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(raw),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=eos_token_ids,
    )


def _family(raw: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    named = raw.get("architectures") or ["(none)"]
    if named[0] not in _FAMILIES:
        raise ModelConfigError(f"architecture {named[0]!r} is not known here; known: {', '.join(sorted(_FAMILIES))}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelConfigError(f"hidden_act {raw['hidden_act']!r} is not known here; known: silu")
    if raw.get("quantization_config"):
        raise ModelConfigError("quantized checkpoints are not supported")
    return named[0], _FAMILIES[named[0]]


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    """The one description behind the two spellings: `rope_parameters` is newer than `rope_theta` and `rope_scaling`."""
    options = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = str(options.get("rope_type") or options.get("type") or "default")
    if kind not in _ROPE_TYPES:
        raise ModelConfigError(f"rope_type {kind!r} is not known here; known: {', '.join(_ROPE_TYPES)}")
    if float(options.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelConfigError("a partial rotary embedding is not supported")
    theta = options.get("rope_theta") or raw.get("rope_theta") or 10_000.0
    return RopeConfig(float(theta), kind, options)


def _sliding_window(raw: Mapping[str, Any]) -> int | None:
    """The window that every layer has. Layers that differ are refused: one mask serves them all."""
    window = raw.get("sliding_window")
    if window is None or not raw.get("use_sliding_window", True):
        return None
    kinds = set(raw.get("layer_types") or ())
    if kinds == {"full_attention"}:
        return None
    if len(kinds) > 1 or int(raw.get("max_window_layers") or 0):
        raise ModelConfigError("sliding-window attention in only some layers is not supported")
    return int(window)


def _generation_eos(model_dir: Path, raw: Mapping[str, Any]) -> frozenset[int]:
    path = model_dir / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    if eos is None:
        return frozenset()
    return frozenset(int(token_id) for token_id in (eos if isinstance(eos, list) else [eos]))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ModelConfigError(f"{path}: not a JSON object")
    return raw
