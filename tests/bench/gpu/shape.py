"""The measured models: a shape, and a checkpoint of it with random weights, made on the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

_SHARD_BYTES = 2 << 30  # of host memory at once
_SPREAD = 0.02  # of the weights: what such models begin their training with


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dtype: torch.dtype

    @property
    def layer_parameters(self) -> int:
        """Of one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def matrix_parameters(self) -> int:
        """Multiplied with every token that is decoded: all layers and the output projection."""
        return self.layers * self.layer_parameters + self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


LLAMA_3_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256, torch.bfloat16)
TINY = Shape(64, 128, 2, 4, 2, 16, 512, torch.float32)


def write_model(shape: Shape, directory: Path, device: torch.device) -> Path:
    """A Hugging Face directory. Files of two GiB, so that little of it is in host memory at once."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_config(shape)))
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for name, size in _weights(shape):
        centre = 1.0 if "norm" in name else 0.0
        weight = torch.randn(size, generator=generator, device=device, dtype=torch.float32) * _SPREAD + centre
        shard[name] = weight.to(shape.dtype).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            _save(shard, directory, weight_map)
    _save(shard, directory, weight_map)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def _save(shard: dict[str, torch.Tensor], directory: Path, weight_map: dict[str, str]) -> None:
    if shard:
        file_name = f"model-{len(set(weight_map.values()))}.safetensors"
        save_file(shard, directory / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
        shard.clear()


def _weights(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for index in range(shape.layers):
        base = f"model.layers.{index}"
        yield f"{base}.self_attn.q_proj.weight", (wide, shape.hidden)
        yield f"{base}.self_attn.k_proj.weight", (narrow, shape.hidden)
        yield f"{base}.self_attn.v_proj.weight", (narrow, shape.hidden)
        yield f"{base}.self_attn.o_proj.weight", (shape.hidden, wide)
        yield f"{base}.mlp.gate_proj.weight", (shape.inner, shape.hidden)
        yield f"{base}.mlp.up_proj.weight", (shape.inner, shape.hidden)
        yield f"{base}.mlp.down_proj.weight", (shape.hidden, shape.inner)
        yield f"{base}.input_layernorm.weight", (shape.hidden,)
        yield f"{base}.post_attention_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }
