"""Quantized checkpoints compute what their numbers are worth; what is damaged or unknown is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.engine_contract import prompt
from quantized_fixture import Packed, pack_awq, pack_fp8, pack_gptq, save_twin
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.quantization.scheme import is_named, spread, unpack
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.model.weights import Checkpoint, ModelLoadError
from weir_executor.paged.parallel.group import Ranks
from weir_executor.paged.parallel.layout import Layout
from weir_executor.paged.parallel.part import Part

_CPU = torch.device("cpu")
_TOKENS = prompt(40)
_Q = "model.layers.1.self_attn.q_proj"
Case = tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]


def _gptq(bits: int, group_size: int, symmetric: bool, act_order: bool = False, v2: bool = False) -> Case:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": act_order}
    config |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    return config, lambda weight: pack_gptq(
        weight, bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order, v2=v2
    )


def _awq(group_size: int) -> Case:
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    return config, lambda weight: pack_awq(weight, group_size=group_size)


def _blocks(rows: int, columns: int) -> Case:
    config = {"quant_method": "fp8", "weight_block_size": [rows, columns], "activation_scheme": "dynamic"}
    return config, lambda weight: pack_fp8(weight, block=(rows, columns), name="weight_scale_inv")


def _channels(shape: str) -> Case:
    config = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}
    return config, lambda weight: pack_fp8(weight, block=(1, weight.shape[1]), name="weight_scale", shape=shape)


def _whole(shape: str) -> Case:
    config = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}

    def pack(weight: torch.Tensor) -> Packed:
        packed = pack_fp8(weight, block=(weight.shape[0], weight.shape[1]), name="weight_scale", shape=shape)
        return Packed({**packed.tensors, "input_scale": torch.tensor(0.5)}, packed.weight)

    return config, pack


_CASES: dict[str, Case] = {
    "gptq4": _gptq(4, 16, symmetric=True),
    "gptq4_asymmetric": _gptq(4, 16, symmetric=False),
    "gptq4_act_order": _gptq(4, 16, symmetric=False, act_order=True),
    "gptq4_one_group": _gptq(4, -1, symmetric=False),
    "gptq4_v2": _gptq(4, 16, symmetric=False, act_order=True, v2=True),
    "gptq8": _gptq(8, 32, symmetric=True),
    "gptq8_asymmetric": _gptq(8, 16, symmetric=False),
    "gptq2": _gptq(2, 8, symmetric=False),
    "awq": _awq(16),
    "awq_one_group": _awq(-1),
    "fp8_blocks": _blocks(16, 16),
    "fp8_blocks_cut_at_the_edges": _blocks(20, 36),
    "fp8_blocks_beyond_the_weight": _blocks(128, 128),
    "fp8_channel": _channels("column"),
    "fp8_channel_flat": _channels("row"),
    "fp8_tensor": _whole("scalar"),
    "fp8_tensor_in_a_list": _whole("row"),
}


def _logits(model_dir: Path) -> torch.Tensor:
    """Of tokens that each attend to themselves alone: enough to meet every weight."""
    config = load_config(model_dir)
    model = load_model(model_dir, config, 512, torch.float32, _CPU)

    def attend(_: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        heads = config.num_heads // config.num_kv_heads
        return queries.tanh() + (keys.sigmoid() * values).repeat_interleave(heads, dim=1)

    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(_TOKENS), torch.arange(len(_TOKENS)), attend))


def _check(packed_dir: Path, plain_dir: Path) -> None:
    torch.testing.assert_close(_logits(packed_dir), _logits(plain_dir), rtol=0, atol=0)


@pytest.mark.parametrize("case", _CASES)
def test_a_quantized_model_is_the_model_of_its_dequantized_weights(case: str, tmp_path: Path) -> None:
    _check(*save_twin("llama3", tmp_path, *_CASES[case]))


@pytest.mark.parametrize("family", ["llama_yarn", "phi3", "gemma2", "gpt_neox", "mixtral", "qwen3_moe"])
def test_every_way_of_naming_and_fusing_projections(family: str, tmp_path: Path) -> None:
    _check(*save_twin(family, tmp_path, *_CASES["gptq4_act_order"]))


def test_weights_that_are_kept_with_their_inputs_as_rows(tmp_path: Path) -> None:
    _check(*save_twin("gpt2", tmp_path, *_CASES["gptq4"], transposed=True))


def test_without_an_index_of_groups_columns_are_grouped_in_order(tmp_path: Path) -> None:
    packed_dir, plain_dir = save_twin("llama3", tmp_path, *_CASES["gptq4"])
    _edit(packed_dir, lambda weights: [weights.pop(name) for name in list(weights) if name.endswith("g_idx")])
    _check(packed_dir, plain_dir)


@pytest.mark.parametrize("case", ["awq", "fp8_blocks"])
def test_modules_that_are_left_out_are_read_as_they_are(case: str, tmp_path: Path) -> None:
    config, pack = _CASES[case]
    packed_dir, plain_dir = save_twin("llama3", tmp_path, {**config, "modules_to_not_convert": ["mlp.down_proj"]}, pack)
    plain = load_file(plain_dir / "model.safetensors")
    downs = {name: tensor for name, tensor in plain.items() if "down_proj" in name}
    _edit(packed_dir, lambda weights: weights.update(downs))
    _check(packed_dir, plain_dir)


def test_a_wider_dtype_is_rounded_once(tmp_path: Path) -> None:
    packed_dir, plain_dir = save_twin("llama3", tmp_path, *_CASES["gptq4"])
    models = [load_model(d, load_config(d), 512, torch.bfloat16, _CPU) for d in (packed_dir, plain_dir)]
    hidden = [m.forward(torch.tensor([3]), torch.tensor([0]), lambda _, q, k, v: q) for m in models]
    assert torch.equal(*hidden)


@pytest.mark.parametrize("case", ["gptq4_act_order", "awq", "fp8_blocks"])
def test_a_rank_has_its_part_of_a_dequantized_weight(case: str, tmp_path: Path) -> None:
    packed_dir, plain_dir = save_twin("llama3", tmp_path, *_CASES[case])
    plain, layout = load_file(plain_dir / "model.safetensors"), Layout(tensor=2, pipeline=1)
    scheme = load_config(packed_dir).quantization
    for rank in range(2):
        shard = Part(layout, layout.place(rank, 3), cast("Ranks", None))  # it reads, and sums nothing
        with Checkpoint(packed_dir, torch.float32, _CPU, scheme=scheme, shard=shard) as checkpoint:
            up = checkpoint.weight("model.layers.1.mlp.up_proj", 48, 48)
            down = checkpoint.weight("model.layers.1.mlp.down_proj", 48, 48)
        own = slice(48 * rank, 48 * rank + 48)
        assert torch.equal(up, plain["model.layers.1.mlp.up_proj.weight"][own])
        assert torch.equal(down, plain["model.layers.1.mlp.down_proj.weight"][:, own])


@pytest.mark.parametrize("case", ["awq", "fp8_blocks", "fp8_channel"])
def test_weights_land_on_the_engines_device(case: str, tmp_path: Path) -> None:
    """On one without memory: whatever stayed behind would not multiply with what is there."""
    packed_dir, _ = save_twin("llama3", tmp_path, *_CASES[case])
    scheme, device = load_config(packed_dir).quantization, torch.device("meta")
    with Checkpoint(packed_dir, torch.bfloat16, device, scheme=scheme) as checkpoint:
        weight = checkpoint.weight("model.layers.1.mlp.up_proj", 96, 48)
    assert (weight.device.type, weight.dtype, weight.shape) == ("meta", torch.bfloat16, (96, 48))


@pytest.mark.cuda
@pytest.mark.parametrize("case", ["gptq4_act_order", "awq", "fp8_blocks"])
def test_a_device_dequantizes_to_the_same_numbers(case: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    packed_dir, plain_dir = save_twin("llama3", tmp_path, *_CASES[case])
    scheme, device = load_config(packed_dir).quantization, torch.device("cuda")
    with Checkpoint(packed_dir, torch.float32, device, scheme=scheme) as checkpoint:
        weight = checkpoint.weight(_Q, 48, 48)
    assert torch.equal(weight.cpu(), load_file(plain_dir / "model.safetensors")[f"{_Q}.weight"])


# ── what is wrong ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _edit(model_dir: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(model_dir / "model.safetensors")
    change(weights)
    save_file(weights, model_dir / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "part", "tensor", "problem"),
    [
        # Numbers that are too few are seen by what stands beside them.
        (
            "gptq4_one_group",
            "qweight",
            torch.zeros(5, 48, dtype=torch.int32),
            r"g_idx': has shape \(48,\), expected \(40,",
        ),
        ("gptq4", "qweight", torch.zeros(6, 40, dtype=torch.int32), r"qzeros': has shape \(3, 6\), expected \(3, 5\)"),
        ("gptq4", "qzeros", torch.zeros(3, 6), "is torch.float32, expected torch.int32"),
        ("gptq4", "scales", torch.ones(2, 48), r"has shape \(2, 48\), expected \(3, 48\)"),
        ("gptq4", "g_idx", torch.full((48,), 3, dtype=torch.int32), r"names groups outside \[0, 3\)"),
        ("gptq4", "g_idx", torch.full((48,), -1, dtype=torch.int32), r"names groups outside \[0, 3\)"),
        ("gptq4", "qzeros", None, "does not contain tensor|not found"),
        ("awq", "qweight", torch.zeros(48, 5, dtype=torch.int32), r"qzeros': has shape \(3, 6\), expected \(3, 5\)"),
        ("fp8_tensor", "weight", torch.zeros(48, 40).to(torch.float8_e4m3fn), r"\(48, 40\), expected \(48, 48\)"),
        ("awq", "scales", torch.ones(3, 48, dtype=torch.int32), "is torch.int32, expected torch.float32 or"),
        ("fp8_blocks", "weight_scale_inv", torch.ones(2, 2), r"has shape \(2, 2\), expected \(3, 3\) or \(48, 1\)"),
        ("fp8_blocks", "weight", torch.ones(48, 48), "is torch.float32, expected torch.float8_e4m3fn"),
        ("fp8_blocks", "weight_scale_inv", None, "is torch.float8_e4m3fn, expected floating point of two bytes"),
    ],
)
def test_a_damaged_tensor_is_named_with_its_file(
    case: str, part: str, tensor: torch.Tensor | None, problem: str, tmp_path: Path
) -> None:
    packed_dir, _ = save_twin("llama3", tmp_path, *_CASES[case])
    name = f"{_Q}.{part}"
    _edit(packed_dir, lambda weights: weights.pop(name) if tensor is None else weights.update({name: tensor}))
    with pytest.raises(ModelLoadError, match=problem) as caught:
        _logits(packed_dir)
    assert "model.safetensors" in str(caught.value)
    assert f"'{_Q}." in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not known here; known: awq, compressed-tensors, fbgemm"),
        ({}, r"'\(none\)' is not known here; known: awq"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq with 3 bits is not known here; known: 2, 4, 8"),
        ({"quant_method": "gptq", "group_size": 128}, "'bits' is missing"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "'marlin' is not known.*known: gptq, gptq_v2",
        ),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin format"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 8}, "awq with 8 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' is not known here; known: gemm"),
        ({"quant_method": "awq", "modules_to_not_convert": "lm_head"}, "is 'lm_head', not a list"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["("]}, r"'\(': missing \)"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"'weight_block_size' is \[128\], not two"),
    ],
)
def test_an_unknown_scheme_is_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    packed_dir, _ = save_twin("llama3", tmp_path, *_CASES["fp8_channel"])
    raw = json.loads((packed_dir / "config.json").read_text())
    (packed_dir / "config.json").write_text(json.dumps({**raw, "quantization_config": {"x": 1, **config}}))
    with pytest.raises(ModelConfigError, match=message):
        load_config(packed_dir)


# ── the pieces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_come_out_of_words_lowest_bits_first() -> None:
    words = torch.tensor([[0x76543210, -1]], dtype=torch.int32)
    assert unpack(words, 4).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, *[15] * 8]]
    assert unpack(words, 8).tolist() == [[0x10, 0x32, 0x54, 0x76, *[255] * 4]]


def test_blocks_are_cut_at_the_far_edges() -> None:
    assert spread(torch.tensor([[1, 2], [3, 4]]), (2, 3), 3, 4).tolist() == [[1, 1, 1, 2], [1, 1, 1, 2], [3, 3, 3, 4]]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["lm_head"], False),
        (["down_proj"], True),
        (["model.layers.1"], True),
        (["model.layers.1.mlp.down"], False),
        (["model.layers.11"], False),
        ([r"model.*\.mlp"], True),
        ([], False),
    ],
)
def test_modules_are_named_as_transformers_names_them(names: list[str], named: bool) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    module = "model.layers.1.mlp.down_proj"
    assert is_named(module, names) is named
    assert should_convert_module(module, names) is not named
