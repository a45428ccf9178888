"""What a PEFT directory says, and what is refused of it before a tensor is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters_fixture import base_of, save_adapter
from models_fixture import save_tiny_model
from weir.inference.v1.model_revision import model_revision
from weir_chassis.errors import InvalidArgument, RevisionMismatch, Unsupported
from weir_executor.adapters.base import Base, check_base
from weir_executor.adapters.config import AdapterConfig, parse_adapter_config
from weir_executor.adapters.files import read_config, read_weights


def parse(**raw: Any) -> AdapterConfig:
    return parse_adapter_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **raw}, max_rank=64)


def test_scales_are_those_of_the_papers() -> None:
    assert parse().scale == 2.0
    assert parse(use_rslora=True, r=16, lora_alpha=8).scale == 2.0
    assert parse(lora_alpha=4.5, r=9).scale == 0.5


def test_targets_are_names_or_a_pattern() -> None:
    assert parse(target_modules=["v_proj", "q_proj"]).targets == ("q_proj", "v_proj")
    assert parse(target_modules=".*_proj").targets == parse(target_modules=None).targets == ()
    assert parse().all_layers
    assert not parse(layers_to_transform=[1]).all_layers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 2]]),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(Unsupported, match=rf"adapter_config\.json: {name}"):
        parse(**{name: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, "r: 0 is no rank"),
        ({"r": "8"}, "r: '8' is no rank"),
        ({"r": 65}, "r: rank 65; at most 64"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"target_modules": [1]}, "target_modules"),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse(**fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_no_table_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"adapter_config\.json"):
        read_config(tmp_path, 64)


def test_missing_and_oversized_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"adapter_config\.json: there is no such file"):
        read_config(tmp_path, 64)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    with pytest.raises(InvalidArgument, match=r"adapter_model\.safetensors: there is no such file"):
        read_weights(tmp_path, 100, lambda _, __: None)
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(101))
    with pytest.raises(InvalidArgument, match="101 bytes; an adapter here has at most 100"):
        read_weights(tmp_path, 100, lambda _, __: None)


def test_the_fingerprint_is_of_both_files(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return read_weights(tmp_path / "a", 1 << 30, lambda _, __: None)[1]

    save_adapter(tmp_path / "a", base_of("llama3"))
    first = fingerprint()
    assert first == fingerprint()
    assert len(first) == 32
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    assert fingerprint() != first, "another scale is another adapter"


# ── where it lies ─────────────────────────────────────────────────────────────────────────────────────────────────────


# ── what it was made for ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_revision_that_the_caller_names_must_be_the_one_that_is_served(tmp_path: Path) -> None:
    base = Base("demo", "r1", tmp_path)
    check_base(parse(), base, None)
    check_base(parse(), base, "r1")
    with pytest.raises(RevisionMismatch) as refused:
        check_base(parse(), base, "r2")
    assert refused.value.metadata == {"revision": "r1", "adapter_base_revision": "r2"}


def test_a_commit_counts_where_the_served_revision_is_one(tmp_path: Path) -> None:
    ours, theirs = "a" * 40, "b" * 40
    check_base(parse(revision="main"), Base("demo", ours, tmp_path), None)
    check_base(parse(revision=ours), Base("demo", ours, tmp_path), None)
    with pytest.raises(RevisionMismatch):
        check_base(parse(revision=theirs), Base("demo", ours, tmp_path), None)


def test_a_directory_counts_by_what_is_in_it(tmp_path: Path) -> None:
    served = base_of("llama3")
    base = Base("demo", model_revision(served), served)
    check_base(parse(base_model_name_or_path=str(served)), base, None)
    same = save_tiny_model("llama3", tmp_path / "copy")
    check_base(parse(base_model_name_or_path=str(same)), base, None)
    other = save_tiny_model("llama3", tmp_path / "other", seed=8)
    with pytest.raises(RevisionMismatch):
        check_base(parse(base_model_name_or_path=str(other)), base, None)
    check_base(parse(base_model_name_or_path="somebody/a-model"), base, None)
