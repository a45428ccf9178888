"""A bad variable stops the process and names itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_executor.settings import ExecutorSettings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_EXECUTOR_MODEL_DIR", "/models/tiny")
    monkeypatch.setenv("WEIR_EXECUTOR_MODEL", "tiny")


def test_two_variables_are_enough() -> None:
    settings = load_settings(ExecutorSettings)
    assert settings.model_dir == Path("/models/tiny")
    assert (settings.engine, settings.device, settings.kvstore_address) == ("paged", "cpu", "")
    assert settings.max_batched_tokens >= settings.max_num_seqs


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MODEL", "", "at least 1 character"),
        ("MODEL", "x" * 129, "longer than 128 bytes"),
        ("REVISION", "é" * 65, "longer than 128 bytes"),
        ("ENGINE", "other", "'paged', 'trtllm', 'openengine' or 'fake'"),
        ("ENGINE", "openengine", "engine openengine needs an openengine_address"),
        ("DTYPE", "float8", "'auto', 'float32'"),
        ("KERNELS", "sse9", "'auto', 'torch', 'plain'"),
        ("BLOCK_SIZE", "0", "greater than or equal to 1"),
        ("BLOCK_SIZE", "1025", "less than or equal to 1024"),
        ("NUM_BLOCKS", "many", "valid integer"),
        ("KV_CACHE_BYTES", "-1", "greater than or equal to 1"),
        ("MAX_MODEL_LEN", "1", "greater than or equal to 2"),
        ("MAX_NUM_SEQS", "0", "greater than or equal to 1"),
        ("MAX_NUM_SEQS", "1000", "max_batched_tokens 512 is less than max_num_seqs 1000"),
        ("TENANTS", "acme", "not JSON"),
        ("TENANTS", '{"acme": {"weight": 0}}', r"TENANTS\[acme\]\[weight\]=0: .* greater than 0"),
        ("TENANTS", '{"acme": {"max_num_seqs": 0}}', "greater than or equal to 1"),
        ("TENANTS", '{"acme": {"max_block": 8}}', r"TENANTS\[acme\]\[max_block\]=8: Extra"),
        ("SPECULATION", "guess", "'off'.* 'ngram'"),
        ("SPECULATION", "draft_model", "speculation draft_model needs a draft_model_dir"),
        ("MAX_DRAFT_TOKENS", "17", "less than or equal to 16"),
        ("ITL_TARGET_MS", "0", "greater than 0"),
        ("MAX_WAITING", "0", "greater than or equal to 1"),
        ("STREAM_BUFFER_ENTRIES", "1", "greater than or equal to 64"),
        ("KVSTORE_DEADLINE_SECONDS", "0", "greater than 0"),
        ("KVSTORE_DEADLINE_SECONDS", "nan", "less than or equal to 60"),
        ("KVSTORE_BYTES_PER_SECOND", "inf", "finite"),
        ("KVSTORE_MIN_BLOCKS", "0", "greater than or equal to 1"),
        ("KVSTORE_ADRESS", "localhost:1", "did you mean WEIR_EXECUTOR_KVSTORE_ADDRESS"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"WEIR_EXECUTOR_{variable}", value)
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(ExecutorSettings)
    assert f"WEIR_EXECUTOR_{variable}" in str(caught.value) or " needs " in words or "max_num_seqs" in words


def test_tenants_are_a_table_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    table = '{"acme": {"weight": 4, "max_num_seqs": 8, "max_blocks": 512}, "*": {"max_blocks": 64}}'
    monkeypatch.setenv("WEIR_EXECUTOR_TENANTS", table)
    tenants = load_settings(ExecutorSettings).tenants
    assert tenants["acme"].model_dump() == {"weight": 4.0, "max_num_seqs": 8, "max_blocks": 512}
    assert tenants["*"].model_dump() == {"weight": 1.0, "max_num_seqs": None, "max_blocks": 64}


@pytest.mark.parametrize("variable", ["MODEL_DIR", "MODEL"])
def test_what_is_needed_is_asked_for(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(f"WEIR_EXECUTOR_{variable}")
    with pytest.raises(SettingsError, match=f"WEIR_EXECUTOR_{variable}"):
        load_settings(ExecutorSettings)
