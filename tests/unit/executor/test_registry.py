"""What each family reads in its `config.json`: as `transformers` understands the same words, defaults included."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models_fixture import FAMILIES, save_tiny_model
from weir_executor.paged.model.config import Fields, ModelConfig, ModelConfigError
from weir_executor.paged.model.gemma import GemmaConfig
from weir_executor.paged.model.registry import FAMILIES as ARCHITECTURES
from weir_executor.paged.model.registry import load_config, load_model, parse_config
from weir_executor.paged.model.rope import rope_table

# transformers' words → ours, where every family has them.
_WORDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "tie_word_embeddings": "tie_word_embeddings",
    "max_position_embeddings": "position_limit",
}


_QUANTIZED: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq", "dynamic": {"-:x": {}}},
    {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "sparsity_config": {"format": "dense"},
        "config_groups": {
            "a": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": True},
            },
            "b": {"targets": ["x"], "weights": {"num_bits": 8, "strategy": "block", "block_structure": [16, 16]}},
        },
    },
]
_CONFIGS: list[dict[str, Any]] = [
    *(dict(config) for config in FAMILIES.values()),
    *({**FAMILIES["llama3"], "quantization_config": quantization} for quantization in _QUANTIZED),
    {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": dict(FAMILIES["gemma3"])},
]
_ROPES = {"rope", "windowed_rope", "full_rope"}


def _parse(**raw: Any) -> ModelConfig:
    return parse_config(Fields(raw))


def test_every_architecture_has_a_tiny_model() -> None:
    """Gemma 3 with images is Gemma 3 without, by other names."""
    alone = set(ARCHITECTURES) - {"Gemma3ForConditionalGeneration"}
    assert {config["architectures"][0] for config in FAMILIES.values()} == alone


@pytest.mark.parametrize("architecture", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_what_a_published_configuration_leaves_out_is_as_in_transformers(architecture: str) -> None:
    config_class = {"Gemma2ForCausalLM": transformers.Gemma2Config, "Gemma3ForCausalLM": transformers.Gemma3TextConfig}
    theirs, ours = config_class[architecture](), _parse(architectures=[architecture])
    assert isinstance(ours, GemmaConfig)
    for their_name, name in _WORDS.items():
        assert getattr(ours, name) == getattr(theirs, their_name), name
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.logit_cap == theirs.final_logit_softcapping
    assert {layer.softcap for layer in ours.attention} == {theirs.attn_logit_softcapping}
    windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
    assert [layer.window for layer in ours.attention] == windows


def test_gemma3_scales_only_the_layers_that_see_everything() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    theirs = transformers.Gemma3TextConfig(rope_scaling=dict(scaling)).rope_parameters
    ours = _parse(architectures=["Gemma3ForCausalLM"], rope_scaling=scaling)
    assert isinstance(ours, GemmaConfig)
    for rope, kind in ((ours.full_rope, "full_attention"), (ours.windowed_rope, "sliding_attention")):
        assert rope.theta == theirs[kind]["rope_theta"]
        assert rope.kind == theirs[kind]["rope_type"]


def test_null_takes_a_cap_away_that_the_family_would_have() -> None:
    config = _parse(architectures=["Gemma2ForCausalLM"], attn_logit_softcapping=None, final_logit_softcapping=None)
    assert isinstance(config, GemmaConfig)
    assert config.logit_cap is None
    assert config.attention[0].softcap is None


@pytest.mark.parametrize(("first", "windows"), [(None, [None] * 3), (2, [None, None, 9]), (0, [9, 9, 9])])
def test_qwen_lets_windows_begin_at_a_layer(first: int | None, windows: list[int | None]) -> None:
    raw = {**FAMILIES["qwen3"], "use_sliding_window": True, "sliding_window": 9, "max_window_layers": first}
    assert [layer.window for layer in _parse(**raw).attention] == windows


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phi3_had_other_names_for_longrope(kind: str) -> None:
    raw = {**FAMILIES["phi3"], "rope_scaling": {**FAMILIES["phi3"]["rope_scaling"], "type": kind}}
    assert _parse(**raw).kv_variant(512) == ",rope=short"
    assert _parse(**{**raw, "original_max_position_embeddings": 100}).kv_variant(512) == ",rope=long"
    assert _parse(**FAMILIES["llama3"]).kv_variant(512) == ""


def test_the_known_architectures_are_listed_in_order(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    known = ", ".join(sorted(ARCHITECTURES))
    with pytest.raises(ModelConfigError, match=re.escape(f"'MambaForCausalLM' is not known here; known: {known}")):
        load_config(tmp_path)


_JUNK = [None, "x", "", -1, 0, 1, 7.5, float("inf"), float("nan"), True, [], ["x"], [1], {}, {"x": 1}]


@given(st.data())
def test_a_damaged_configuration_is_refused_and_never_crashes(data: st.DataObject) -> None:
    raw = data.draw(st.sampled_from(_CONFIGS).map(deepcopy))
    place = raw
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or not place[name] or data.draw(st.booleans()):
            break
        place = place[name]
    place[name] = data.draw(st.sampled_from(_JUNK))
    try:
        config = _parse(**raw)
        for name in _ROPES & set(dir(config)):
            rope_table(getattr(config, name), 8, torch.device("cpu"))
    except ModelConfigError:
        pass


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not known here; known: gelu_pytorch"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"activation_function": "swish2"}, "known: gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, relu, silu"),
        ("gpt_neox", {"rotary_pct": 0.4}, "cannot turn 3 dimensions"),
    ],
)
def test_what_a_family_cannot_compute_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        _parse(**{**FAMILIES[family], **changes})


def test_gpt2_may_be_saved_without_its_prefix(tmp_path: Path) -> None:
    model_dir = save_tiny_model("gpt2", tmp_path / "model")
    prefixed = _logits(model_dir)
    weights = load_file(model_dir / "model.safetensors")
    save_file({k.removeprefix("transformer."): v for k, v in weights.items()}, model_dir / "model.safetensors")
    torch.testing.assert_close(_logits(model_dir), prefixed, rtol=0, atol=0)


@pytest.mark.parametrize("base", ["language_model.model", "model.language_model"])
def test_gemma3_with_images_is_served_as_its_text_model(base: str, tmp_path: Path) -> None:
    model_dir = save_tiny_model("gemma3", tmp_path / "model")
    alone = _logits(model_dir)
    weights = load_file(model_dir / "model.safetensors")
    renamed = {f"{base}.{name.removeprefix('model.')}": tensor for name, tensor in weights.items()}
    save_file({**renamed, "vision_tower.x": torch.ones(1)}, model_dir / "model.safetensors")
    inner = json.loads((model_dir / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16", "eos_token_id": [1, 106]}
    del inner["dtype"]
    (model_dir / "config.json").write_text(json.dumps({**outer, "text_config": inner, "vision_config": {}}))
    (model_dir / "generation_config.json").unlink()
    torch.testing.assert_close(_logits(model_dir), alone, rtol=0, atol=0)
    assert load_config(model_dir).dtype == "bfloat16"
    assert load_config(model_dir).eos_token_ids == {1, 106}


def _logits(model_dir: Path) -> torch.Tensor:
    """Of a token that attends to itself alone."""
    config = load_config(model_dir)
    model = load_model(model_dir, config, 512, torch.float32, torch.device("cpu"))
    group = config.num_heads // config.num_kv_heads
    hidden = model.forward(torch.tensor([5]), torch.tensor([0]), lambda _, q, k, v: v.repeat_interleave(group, dim=1))
    return model.logits(hidden)
