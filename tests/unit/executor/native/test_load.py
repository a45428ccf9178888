"""Which decoder computes a model here, and what is said when it is not the native one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from contract.engine_contract import prompt, request
from models_fixture import tiny_model
from unit.executor.oracle import reference_greedy, run_paged
from weir_executor.native.build import NativeUnavailableError
from weir_executor.native.library import best_isa
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.native import load
from weir_executor.paged.native.binding import load_library


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == load.__name__]


@pytest.fixture(autouse=True)
def _every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_the_best_kernels_are_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=8, num_threads=2))
    assert _lines(caplog) == [f"native kernels compute: {best_isa(load_library())}, 2 threads"]


def test_without_a_compiler_pytorch_gives_the_same_tokens_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("WEIR_NATIVE_CACHE", str(tmp_path))
    tokens, _ = run_paged("llama3", [request(1, prompt(30), 12)], "auto")
    assert tokens[1] == reference_greedy("llama3", prompt(30), 12)
    assert len(_lines(caplog)) == 1
    assert "PyTorch computes" in _lines(caplog)[0]
    assert "/nowhere/c++" in _lines(caplog)[0]


def test_a_model_that_is_not_covered_says_so(caplog: pytest.LogCaptureFixture) -> None:
    load_engine(PagedEngineConfig(tiny_model("gemma2"), num_blocks=8, num_threads=1))
    assert len(_lines(caplog)) == 1
    assert "Gemma2ForCausalLM" in _lines(caplog)[0]


def test_pytorch_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=8, num_threads=1, kernels="torch"))
    assert not _lines(caplog)


def test_kernels_asked_for_by_name_must_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelConfigError, match=r"kernels 'plain' cannot be had here: the architecture is Gemma2"):
        load_engine(PagedEngineConfig(tiny_model("gemma2"), num_blocks=8, kernels="plain"))
    with pytest.raises(NativeUnavailableError, match="does not run 'avx1024'"):
        best_isa(load_library(), "avx1024")


def test_what_computes_is_told_in_words() -> None:
    """Who goes on with another's output compares them."""

    def told(**fields: Any) -> str:
        engine = load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=8, num_threads=1, **fields))
        engine.close()
        return engine.info.compute

    assert told(kernels="plain") == told(kernels="plain", max_num_seqs=3) == "float32, native plain"
    assert told(kernels="plain", dtype="bfloat16") == "bfloat16, native plain"
    assert told(kernels="plain", weights="int8") == "int8 in float32, native plain"
    assert told(kernels="torch").startswith("float32, torch ")


@pytest.mark.parametrize("kernels", ["plain", "auto"])
def test_a_named_instruction_set_gives_the_same_tokens(kernels: str) -> None:
    tokens, _ = run_paged("qwen3", [request(1, prompt(50), 12)], kernels)
    assert tokens[1] == reference_greedy("qwen3", prompt(50), 12)
