"""What is read of a model directory, and what is said of one that cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weir.inference.v1.model_revision import model_revision, tokenizer_hash
from weir_chassis.settings import SettingsError
from weir_executor.model_files import read_model_files
from weir_executor.request import Sampling
from weir_executor.settings import ExecutorSettings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def settings(directory: Path, **fields: Any) -> ExecutorSettings:
    return ExecutorSettings(model_dir=directory, model="tiny", **fields)


def generation(directory: Path, **config: Any) -> Sampling:
    (directory / "generation_config.json").write_text(json.dumps(config))
    return read_model_files(settings(directory)).default_sampling


def test_the_version_is_the_directorys(directory: Path) -> None:
    files = read_model_files(settings(directory))
    assert files.version.model == "tiny"
    assert files.version.revision == model_revision(directory)
    assert files.version.tokenizer_hash == tokenizer_hash(directory)
    assert files.config == {"vocab_size": 300}


def test_the_operator_may_name_the_revision(directory: Path) -> None:
    assert read_model_files(settings(directory, revision="2026-11")).version.revision == "2026-11"


def test_without_a_generation_config_the_contracts_defaults_stand(directory: Path) -> None:
    assert read_model_files(settings(directory)).default_sampling == Sampling()


def test_the_models_own_defaults_count_when_it_samples(directory: Path) -> None:
    own = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
    assert generation(directory, do_sample=True, **own) == Sampling(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05
    )
    assert generation(directory, **own) == Sampling()
    assert generation(directory, do_sample=True, temperature=None, top_k=None) == Sampling()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": -1}, r"temperature: -1 is outside \[0, 100\]"),
        ({"top_p": 0}, r"top_p: 0 is outside \(0, 1\]"),
        ({"top_k": -5}, "top_k: -5 is outside"),
        ({"top_p": "much"}, "could not convert"),
        ({"top_p": [1]}, "float"),
    ],
)
def test_defaults_out_of_range_stop_the_start(directory: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        generation(directory, do_sample=True, **config)
    assert "WEIR_EXECUTOR_MODEL_DIR" in str(caught.value)
    assert "generation_config.json" in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(directory: Path, missing: str) -> None:
    (directory / missing).unlink()
    with pytest.raises(SettingsError, match=f"WEIR_EXECUTOR_MODEL_DIR=.*: {missing} is missing"):
        read_model_files(settings(directory))


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff"])
def test_a_config_that_is_no_json_object_is_named(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=r"config.json is not"):
        read_model_files(settings(directory))
