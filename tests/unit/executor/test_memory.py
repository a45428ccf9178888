"""`weir memory` against what is there: checkpoints of every family, the cache's own blocks, published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from models_fixture import FAMILIES, tiny_model
from weir_client.cli import main
from weir_executor.memory import shape as shape_module
from weir_executor.memory.estimate import (
    Capacity,
    DoesNotFitError,
    Estimate,
    Setup,
    capacity,
    check_fit,
    estimate,
    sequence_bytes,
)
from weir_executor.memory.shape import ModelShape, UnknownShapeError, model_shape, read_shape
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model import registry
from weir_executor.paged.model.config import Fields
from weir_executor.paged.model.registry import load_config

# As published in their repositories; what does not bear on memory is left out.
_LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
_LLAMA2_7B = {
    **_LLAMA3_8B,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}
_QWEN2_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
_MIXTRAL = {**_LLAMA3_8B, "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "vocab_size": 32000}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


def _total(shape: ModelShape) -> int:
    return shape.linear_weights + shape.embedding_weights + shape.head_weights + shape.other_weights


def test_every_family_that_the_engine_computes_is_known() -> None:
    assert shape_module.FAMILIES.keys() == registry.FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_checkpoint(family: str) -> None:
    directory = tiny_model(family, "bfloat16")
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (not a dict)
    shape = read_shape(directory)
    assert _total(shape) == stored
    assert estimate(shape, Setup("bfloat16", "bfloat16")).weight_bytes == 2 * stored


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_is_that_of_the_cache_and_windows_those_of_the_model(family: str) -> None:
    config, shape = load_config(tiny_model(family)), read_shape(tiny_model(family))
    cache = KvCache(config, 3, 8, torch.float16, torch.device("cpu"))
    assert estimate(shape, Setup("float32", "float16", block_size=8)).block_bytes == cache.block_bytes
    assert shape.windows == tuple(layer.window for layer in config.attention)
    assert (shape.num_layers, shape.head_dim, shape.dtype) == (config.num_layers, config.head_dim, config.dtype)


@pytest.mark.parametrize(
    "raw",
    [
        {"architectures": ["Gemma2ForCausalLM"]},
        {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 512},
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024},
            "vision_config": {"hidden_size": 1152},
        },
    ],
)
def test_what_a_published_configuration_leaves_out_is_what_the_engine_takes(raw: dict[str, Any]) -> None:
    config, shape = registry.parse_config(Fields(raw)), model_shape(raw)
    assert shape.windows == tuple(layer.window for layer in config.attention)
    assert (shape.num_kv_heads, shape.head_dim) == (config.num_kv_heads, config.head_dim)
    assert shape.embedding_weights == config.vocab_size * config.hidden_size
    assert (shape.head_weights == 0) is config.tie_word_embeddings
    assert shape.max_model_len == config.position_limit


@pytest.mark.parametrize(
    ("raw", "weights", "kv_bytes_per_token"),
    [
        (_LLAMA3_8B, 8_030_261_248, 128 << 10),
        (_LLAMA2_7B, 6_738_415_616, 512 << 10),
        (_QWEN2_05B, 494_032_768, 12 << 10),
        (_MIXTRAL, 46_702_792_704, 128 << 10),
        (_GPT2, 124_439_808, 36 << 10),
    ],
    ids=["llama-3-8b", "llama-2-7b", "qwen2-0.5b", "mixtral-8x7b", "gpt2"],
)
def test_published_numbers(raw: dict[str, Any], weights: int, kv_bytes_per_token: int) -> None:
    shape = model_shape(raw)
    assert _total(shape) == weights
    assert estimate(shape, Setup("bfloat16", "bfloat16")).kv_bytes_per_token == kv_bytes_per_token


def test_a_model_that_sees_images_takes_what_its_text_model_takes() -> None:
    inner = json.loads((tiny_model("gemma3", "bfloat16") / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16", "text_config": inner}
    assert replace(model_shape(outer), architecture="Gemma3ForCausalLM") == model_shape(inner)


def test_ranks_share_heads_and_matrices_and_not_the_embedding() -> None:
    shape = model_shape(_LLAMA3_8B)
    whole, half = (estimate(shape, Setup("bfloat16", "bfloat16", tensor_parallel=ranks)) for ranks in (1, 2))
    assert half.block_bytes * 2 == whole.block_bytes
    shared = 2 * (shape.embedding_weights + shape.other_weights)
    assert (half.weight_bytes - shared) * 2 == whole.weight_bytes - shared
    with pytest.raises(ValueError, match="8 KV heads cannot be spread over 16 ranks"):
        estimate(shape, Setup("bfloat16", "bfloat16", tensor_parallel=16))


def test_narrow_formats_narrow_the_layers_matrices_only() -> None:
    shape = model_shape(_LLAMA3_8B)
    kept = 2 * (_total(shape) - shape.linear_weights)
    for name, bits in (("fp8", 8), ("int8", 8.125), ("int4", 4.15625)):
        assert estimate(shape, Setup(name, "bfloat16")).weight_bytes == kept + int(shape.linear_weights * bits / 8)


def test_a_windowed_layer_could_keep_its_window_only() -> None:
    raw = {**_LLAMA3_8B, "architectures": ["Gemma2ForCausalLM"], "sliding_window": 4096}
    shape, setup = model_shape(raw), Setup("bfloat16", "bfloat16")
    per_token = estimate(shape, setup).kv_bytes_per_token
    assert sequence_bytes(shape, setup, 1000) == (1008 * per_token, 1000 * per_token)
    kept, least = sequence_bytes(shape, setup, 8192)
    assert kept == 8192 * per_token
    assert least == per_token // 32 * (16 * 8192 + 16 * 4096)


@given(st.integers(0, 1 << 38), st.integers(1, 200_000), st.integers(1, 64))
def test_what_fits_a_memory_fits_it(memory: int, context: int, block_size: int) -> None:
    shape = model_shape(_LLAMA3_8B)
    one = estimate(shape, Setup("bfloat16", "bfloat16", block_size))
    try:
        held = capacity(one, memory, context, block_size)
    except DoesNotFitError:
        assert one.weight_bytes + context * one.kv_bytes_per_token > memory * 0.9 - one.block_bytes
        return
    assert isinstance(held, Capacity)
    assert one.weight_bytes + held.num_blocks * one.block_bytes <= memory * 0.9
    assert held.concurrency * context <= held.tokens
    assert held.concurrency >= 1


def test_what_does_not_fit_is_told_with_the_numbers() -> None:
    one = Estimate(weight_bytes=10 << 30, kv_bytes_per_token=1 << 20, block_bytes=16 << 20)
    check_fit(one, 128, 12 << 30)
    with pytest.raises(DoesNotFitError) as caught:
        check_fit(one, 1280, 12 << 30)
    assert str(caught.value) == (
        "out of memory: weights take 10.00 GiB and 1280 KV blocks 20.00 GiB, 12.00 GiB are free: "
        "128 blocks (2147483648 bytes) would fit"
    )
    with pytest.raises(DoesNotFitError, match="not even the weights do"):
        check_fit(one, 1, 9 << 30)


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["memory", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def llama3(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(_LLAMA3_8B))
    return str(tmp_path)


def test_the_command_prints_a_page(llama3: str) -> None:
    assert _run(llama3, "--memory", "24G", "--context", "8192").splitlines() == [
        "LlamaForCausalLM: 32 layers, 32 heads, 8 KV heads of 128",
        "weights       bfloat16 14.96 GiB, fp8 8.46 GiB, int8 8.56 GiB, int4 5.33 GiB",
        "KV            128 KiB per token, 2048 KiB per block of 16 tokens, in bfloat16",
        "one sequence  1.00 GiB for 8192 tokens",
        "24.00 GiB     6.64 GiB for KV beside bfloat16 weights: 3400 blocks, 54400 tokens, 6 sequences of 8192 at once",
    ]


def test_the_command_prints_json(llama3: str) -> None:
    answer = json.loads(_run(llama3, "--json", "--memory", "80GiB", "--tensor-parallel", "2", "--kv-dtype", "float32"))
    assert answer["kv_bytes_per_token"] == 128 << 10
    assert answer["tensor_parallel"] == 2
    assert answer["capacity"]["context"] == 8192
    assert answer["capacity"]["num_blocks"] * answer["block_bytes"] <= answer["capacity"]["kv_bytes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "8G"], "weights take 14.96 GiB"),
        (["--memory", "much"], "no size such as 80G"),
        (["--tensor-parallel", "3"], "cannot be spread over 3 ranks"),
    ],
)
def test_what_cannot_be_is_one_line(llama3: str, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["memory", llama3, *arguments])
    assert done.exit_code != 0
    assert words in done.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "config.json"),
        ("[]", "config.json"),
        ('{"architectures": ["Mamba"]}', "'Mamba' is not known here; known: GPT2"),
        ('{"architectures": ["LlamaForCausalLM"]}', "num_hidden_layers"),
    ],
)
def test_a_configuration_that_is_none_names_its_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnknownShapeError, match=words):
        read_shape(tmp_path)


def test_it_needs_no_torch(llama3: str) -> None:
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = None; from weir_client.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "memory", llama3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "128 KiB per token" in done.stdout
