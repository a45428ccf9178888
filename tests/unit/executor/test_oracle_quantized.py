"""Quantized checkpoints against the libraries that define them: `compressed-tensors`, and `transformers` for FP8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from contract.engine_contract import Listener, prompt, request
from quantized_fixture import Packed, pack_fp8, pack_gptq, save_twin
from unit.executor.oracle import paged_logits
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.model.weights import ModelLoadError

_TOKENS = prompt(60)
_CHUNKS = [37, 1, 1, 21]

# format, and the arguments that the library quantizes weights by.
_COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "int4_groups": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": True}),
    "int4_asymmetric": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}),
    "int4_channels": ("pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}),
    "int8_packed": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 16, "symmetric": True}),
    "int8_channels": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "int8_tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "fp8_channels": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}),
    "fp8_tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}),
    "fp8_blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16], "symmetric": True},
    ),
}


def _compress(weight: torch.Tensor, kept: str, args: QuantizationArgs) -> Packed:
    """All of it is the library's: scales, zero points, packing, and what the result is worth."""
    rows, columns = weight.shape
    match args.strategy:
        case "tensor":
            blocks = weight.reshape(1, -1)
        case "channel":
            blocks = weight.unsqueeze(1)
        case "group":
            blocks = weight.view(rows, columns // args.group_size, args.group_size)
        case _:
            blocks = weight.view(rows // 16, 16, columns // 16, 16).transpose(1, 2).flatten(2)
    scale, zero = calculate_qparams(blocks.amin(dim=-1), blocks.amax(dim=-1), args)
    scheme, compressor = QuantizationScheme(targets=["Linear"], weights=args), _compressor(kept)
    packed = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
    return Packed(packed, compressor.decompress(packed, scheme)["weight"])


def _compressor(kept: str) -> Any:
    return BaseCompressor.get_value_from_registry(kept)


def _twin(name: str, root: Path) -> tuple[Path, Path]:
    kept, given = _COMPRESSED[name]
    args = QuantizationArgs(**given)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        format=kept,
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    return save_twin("llama3", root, json.loads(config.model_dump_json()), lambda weight: _compress(weight, kept, args))


def _transformers_logits(model_dir: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([_TOKENS])).logits[0]
        return logits


def _check(model_dir: Path, expected: torch.Tensor) -> None:
    torch.testing.assert_close(paged_logits(model_dir, _TOKENS, _CHUNKS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", _COMPRESSED)
def test_what_compressed_tensors_packs(name: str, tmp_path: Path) -> None:
    packed_dir, plain_dir = _twin(name, tmp_path)
    _check(packed_dir, _transformers_logits(plain_dir))


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_blocks_of_fp8_as_transformers_reads_them(family: str, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def pack(weight: torch.Tensor) -> Packed:
        tensors = pack_fp8(weight, block=(16, 16), name="weight_scale_inv").tensors
        worth = Fp8Dequantize(None)._dequantize_one(tensors["weight"], tensors["weight_scale_inv"], torch.float32)
        return Packed(tensors, worth)

    config = {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": ["lm_head"]}
    packed_dir, plain_dir = save_twin(family, tmp_path, config, pack)
    _check(packed_dir, _transformers_logits(plain_dir))


def test_the_engine_serves_a_quantized_model(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 8, "group_size": 16, "desc_act": True, "sym": False}
    packed_dir, plain_dir = save_twin(
        "qwen3",
        tmp_path,
        config,
        lambda weight: pack_gptq(weight, bits=8, group_size=16, symmetric=False, act_order=True),
    )
    engine, heard = load_engine(PagedEngineConfig(packed_dir, num_blocks=64, num_threads=1)), Listener()
    engine.start(heard)
    try:
        engine.submit(request(1, _TOKENS, 1))
        heard.wait_for_ends(1)
    finally:
        engine.close()
    assert heard.tokens[1, 0] == [int(_transformers_logits(plain_dir)[-1].argmax())]


def _reconfigured(root: Path, **changes: Any) -> Path:
    packed_dir, _ = _twin("int4_groups", root)
    path = packed_dir / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] |= changes
    path.write_text(json.dumps(raw))
    return packed_dir


def test_groups_are_found_by_the_names_they_target(tmp_path: Path) -> None:
    group = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": True}}
    other = {"weights": {"num_bits": 8, "strategy": "channel"}}
    groups = {"a": {**other, "targets": ["re:nothing"]}, "b": {**group, "targets": [r"re:model\.layers\..*"]}}
    packed_dir = _reconfigured(tmp_path, config_groups=groups)
    _check(packed_dir, _transformers_logits(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "nvfp4-pack-quantized"}, "'nvfp4-pack-quantized' is not known here; known: dense, float-quantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "a sparsity_config is not known"),
        ({"transform_config": {"config_groups": {"r": {}}}}, "a transform_config is not known"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 6}}}}, "6 bits is not known"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "attn_head"}}}},
            "strategy 'attn_head' is not known here; known: tensor, channel, group, block",
        ),
    ],
)
def test_what_compressed_tensors_may_be_and_we_do_not_know_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelConfigError, match=message):
        load_config(_reconfigured(tmp_path, **changes))


def test_a_module_that_no_group_targets_is_named(tmp_path: Path) -> None:
    groups = {"a": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 4, "group_size": 16}}}
    with pytest.raises(ModelLoadError, match=r"weight_scale': is there, but no group .* targets its module"):
        paged_logits(_reconfigured(tmp_path, config_groups=groups), _TOKENS, _CHUNKS)
