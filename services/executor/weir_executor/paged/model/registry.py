"""The architectures that this engine computes: `architectures[0]` in `config.json` → how it is read and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weir_executor.paged.model.config import Fields, ModelConfig, ModelConfigError, read_eos_token_ids, read_fields
from weir_executor.paged.model.decoder_model import DecoderModel
from weir_executor.paged.model.gemma import load_gemma, parse_gemma2, parse_gemma3, parse_gemma3_with_images
from weir_executor.paged.model.gpt2 import load_gpt2, parse_gpt2
from weir_executor.paged.model.gpt_neox import load_gpt_neox, parse_gpt_neox
from weir_executor.paged.model.layers import MakeLinear, linear
from weir_executor.paged.model.llama import load_llama, parse_llama, parse_qwen2, parse_qwen3
from weir_executor.paged.model.mixtral import load_mixtral, parse_mixtral
from weir_executor.paged.model.phi3 import load_phi3, parse_phi3
from weir_executor.paged.model.quantization.schemes import parse_scheme
from weir_executor.paged.model.qwen3_moe import load_qwen3_moe, parse_qwen3_moe
from weir_executor.paged.model.shard import WHOLE, Shard
from weir_executor.paged.model.weights import Checkpoint, Wrap, as_it_is


@dataclass(frozen=True, slots=True)
class Family:
    parse: Callable[[str, Fields], ModelConfig]  # (architecture, config.json)
    load: Callable[[Any, Checkpoint, int], DecoderModel]  # (what `parse` returned, weights, longest sequence)
    splits: bool = False  # its heads and features can be spread over ranks


FAMILIES: Mapping[str, Family] = {
    "Gemma2ForCausalLM": Family(parse_gemma2, load_gemma, splits=True),
    "Gemma3ForCausalLM": Family(parse_gemma3, load_gemma, splits=True),
    "Gemma3ForConditionalGeneration": Family(parse_gemma3_with_images, load_gemma, splits=True),
    "GPT2LMHeadModel": Family(parse_gpt2, load_gpt2),
    "GPTNeoXForCausalLM": Family(parse_gpt_neox, load_gpt_neox),
    "LlamaForCausalLM": Family(parse_llama, load_llama, splits=True),
    "MistralForCausalLM": Family(parse_llama, load_llama, splits=True),
    "MixtralForCausalLM": Family(parse_mixtral, load_mixtral, splits=True),
    "Phi3ForCausalLM": Family(parse_phi3, load_phi3),
    "Qwen2ForCausalLM": Family(parse_qwen2, load_llama, splits=True),
    "Qwen3ForCausalLM": Family(parse_qwen3, load_llama, splits=True),
    "Qwen3MoeForCausalLM": Family(parse_qwen3_moe, load_qwen3_moe, splits=True),
}


def load_config(model_dir: Path) -> ModelConfig:
    """Read `config.json` and, for the end-of-sequence ids, `generation_config.json`. Raises `ModelConfigError`."""
    fields = read_fields(model_dir)
    try:
        config = parse_config(fields)
    except ModelConfigError as error:
        raise ModelConfigError(f"{model_dir / 'config.json'}: {error}") from error
    return replace(config, eos_token_ids=read_eos_token_ids(model_dir, fields))


def parse_config(fields: Fields) -> ModelConfig:
    architecture = next(iter(fields.names("architectures")), "(none)")
    if architecture not in FAMILIES:
        raise ModelConfigError(f"architecture {architecture!r} is not known here; known: {', '.join(sorted(FAMILIES))}")
    config = FAMILIES[architecture].parse(architecture, fields)
    quantization = fields.inner("quantization_config")
    return replace(config, quantization=parse_scheme(quantization)) if quantization.raw else config


def load_model(
    model_dir: Path,
    config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shard: Shard = WHOLE,
    make_linear: MakeLinear = linear,
    wrap: Wrap = as_it_is,
) -> DecoderModel:
    """Read the weights; with a shard, those of the part that `config` describes. `make_linear`, `wrap`: see
    `Checkpoint`. Raises `ModelLoadError` naming the file and tensor that are wrong."""
    with Checkpoint(
        model_dir, dtype, device, scheme=config.quantization, shard=shard, make_linear=make_linear, wrap=wrap
    ) as checkpoint:
        return FAMILIES[config.architecture].load(config, checkpoint, max_model_len)
