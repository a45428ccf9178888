"""The names and shapes that a checkpoint of each family holds, from its `config.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def weight_shapes(config: Mapping[str, Any]) -> Shapes:
    match config["model_type"]:
        case "gpt2":
            return _gpt2(config)
        case "gpt_neox":
            return _gpt_neox(config)
        case _:
            return _llama_like(config)


def _llama_like(config: Mapping[str, Any]) -> Shapes:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for index in range(config["num_hidden_layers"]):
        for name, shape in _llama_like_layer(config, index):
            yield f"model.layers.{index}.{name}", shape
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _llama_like_layer(config: Mapping[str, Any], index: int) -> Shapes:
    if config["model_type"] == "phi3":
        yield from _fused(config)
    else:
        yield from _attention(config)
        yield from _experts(config) if _has_experts(config, index) else _mlp(config)
    yield from _norms(config)


def _has_experts(config: Mapping[str, Any], index: int) -> bool:
    if config["model_type"] != "qwen3_moe":
        return bool(config["model_type"] == "mixtral")
    left_out = config.get("mlp_only_layers") or []
    return (index + 1) % config.get("decoder_sparse_step", 1) == 0 and index not in left_out


def _attention(config: Mapping[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    wide, narrow = _widths(config)
    attention_bias = config.get("attention_bias", False)
    qkv_bias = attention_bias or config["model_type"] == "qwen2"
    for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
        yield from _projection(f"self_attn.{part}_proj", rows, hidden, qkv_bias)
    yield from _projection("self_attn.o_proj", hidden, wide, attention_bias)


def _mlp(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        yield from _projection(f"mlp.{part}_proj", rows, columns, config.get("mlp_bias", False))


def _experts(config: Mapping[str, Any]) -> Shapes:
    """The first two go from hidden to inner, the third back."""
    hidden, inner = config["hidden_size"], config.get("moe_intermediate_size") or config["intermediate_size"]
    count = config.get("num_local_experts") or config["num_experts"]
    base, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    if config["model_type"] == "mixtral":
        base, names = "block_sparse_moe", ("w1", "w3", "w2")
    yield f"{base}.gate.weight", (count, hidden)
    for expert in range(count):
        for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
            yield f"{base}.experts.{expert}.{name}.weight", shape


def _fused(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide, narrow = _widths(config)
    yield "self_attn.qkv_proj.weight", (wide + 2 * narrow, hidden)
    yield "self_attn.o_proj.weight", (hidden, wide)
    yield "mlp.gate_up_proj.weight", (2 * inner, hidden)
    yield "mlp.down_proj.weight", (hidden, inner)


def _norms(config: Mapping[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if config["model_type"].startswith("gemma"):
        yield "pre_feedforward_layernorm.weight", (hidden,)
        yield "post_feedforward_layernorm.weight", (hidden,)
    if config["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text"):
        yield "self_attn.q_norm.weight", (_head_dim(config),)
        yield "self_attn.k_norm.weight", (_head_dim(config),)


def _gpt_neox(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    attention_bias = config.get("attention_bias", True)
    yield "gpt_neox.embed_in.weight", (vocab, hidden)
    for index in range(config["num_hidden_layers"]):
        base = f"gpt_neox.layers.{index}"
        yield from _layer_norm(f"{base}.input_layernorm", hidden)
        yield from _layer_norm(f"{base}.post_attention_layernorm", hidden)
        yield from _projection(f"{base}.attention.query_key_value", 3 * hidden, hidden, attention_bias)
        yield from _projection(f"{base}.attention.dense", hidden, hidden, attention_bias)
        yield from _projection(f"{base}.mlp.dense_h_to_4h", inner, hidden, True)
        yield from _projection(f"{base}.mlp.dense_4h_to_h", hidden, inner, True)
    yield from _layer_norm("gpt_neox.final_layer_norm", hidden)
    yield "embed_out.weight", (vocab, hidden)


def _gpt2(config: Mapping[str, Any]) -> Shapes:
    """Weights stand with their inputs as rows: [inputs, outputs]."""
    hidden, vocab = config["n_embd"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * hidden
    yield "transformer.wte.weight", (vocab, hidden)
    yield "transformer.wpe.weight", (config["n_positions"], hidden)
    for index in range(config["n_layer"]):
        base = f"transformer.h.{index}"
        yield from _layer_norm(f"{base}.ln_1", hidden)
        yield from _layer_norm(f"{base}.ln_2", hidden)
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        ):
            yield f"{base}.{name}.weight", (inputs, outputs)
            yield f"{base}.{name}.bias", (outputs,)
    yield from _layer_norm("transformer.ln_f", hidden)
    if not config.get("tie_word_embeddings", True):
        yield "lm_head.weight", (vocab, hidden)


def _widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of all query heads, and of all key heads."""
    head_dim = _head_dim(config)
    return config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _projection(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _layer_norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
