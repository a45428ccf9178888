"""The fake `LLM` has the interface that was read; the real one is held against the same where it is installed."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.trtllm import connector, llm, params, results
from fakes.trtllm.names import CONNECTORS, find
from weir_executor.trtllm.library import load_library
from weir_executor.trtllm.probe import UnknownVersionError, probe
from weir_executor.trtllm.surface import differences, field_defaults, find_name, parameters, surface


def test_the_fake_has_all_that_is_used() -> None:
    assert differences(find) == []


def test_the_fake_has_nothing_that_was_not_read() -> None:
    """So that what runs on it would run on the real one."""
    known = surface()
    submit = known.callables["tensorrt_llm.LLM.generate_async"]
    extra = parameters(llm.LLM.generate_async) - submit.all
    assert extra == {"prompt_adapter_request", "_postproc_params"}, "unused, and there"
    result = results.RequestOutput.__init__.__code__.co_names
    for name in known.objects["RequestOutput"] - {"abort"}:
        assert name in result, name
    assert known.objects["CompletionOutput"] <= field_defaults(results.CompletionOutput).keys()
    newer = known.fields[f"{CONNECTORS}.RequestData"]
    assert newer.needed == field_defaults(connector.RequestData).keys()
    assert newer.optional <= field_defaults(connector.NewerRequestData).keys()
    request = connector.LlmRequest(1, [2], "salt", tells_salt=True)
    assert all(hasattr(request, name) for name in known.objects["LlmRequest"])
    assert known.objects["Logprob"] <= field_defaults(results.Logprob).keys()


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("tensorrt_llm.LLM.shutdown", None, "tensorrt_llm.LLM.shutdown is missing"),
        ("tensorrt_llm.LLM.generate_async", lambda inputs: None, "generate_async has no cache_salt"),
        ("tensorrt_llm.SamplingParams", params.CudaGraphConfig, "tensorrt_llm.SamplingParams has no end_id"),
        ("tensorrt_llm.executor.utils", params, "tensorrt_llm.executor.utils has no RequestError"),
    ],
)
def test_what_differs_is_told(name: str, found: Any, words: str) -> None:
    def other(asked: str) -> Any:
        if asked == name and found is None:
            raise AttributeError(asked)
        return found if asked == name else find(asked)

    assert any(words in line for line in differences(other))


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no module named nothing_such"):
        find_name("nothing_such.LLM")


def test_what_older_versions_have_elsewhere_is_found_there() -> None:
    def older(asked: str) -> Any:
        if CONNECTORS in asked:
            raise ModuleNotFoundError(asked)
        return find(asked.replace("pyexecutor.kv_cache_connector", "pyexecutor.connectors.kv_cache_connector"))

    assert differences(older) == []


def test_another_default_is_told() -> None:
    class KvCacheConfig(params.KvCacheConfig):
        def __init__(self, *, tokens_per_block: int = 64, enable_block_reuse: bool = True) -> None: ...

    def other(asked: str) -> Any:
        return KvCacheConfig if asked.endswith("KvCacheConfig") else find(asked)

    KvCacheConfig.__dataclass_fields__["tokens_per_block"].default = 64
    try:
        assert any("tokens_per_block defaults to 64, not to 32" in line for line in differences(other))
    finally:
        KvCacheConfig.__dataclass_fields__["tokens_per_block"].default = 32


@pytest.mark.parametrize("version", ["1.2.1", "1.3.0rc29", "1.4.0rc1"])
def test_versions_that_were_read_are_taken_and_others_only_when_told(version: str) -> None:
    probe(llm.library(version), allow_unknown=False)
    for unknown in ("1.1.0", "2.0.0", "1.20.0"):
        with pytest.raises(UnknownVersionError, match="ALLOW_UNKNOWN_VERSION"):
            probe(llm.library(unknown), allow_unknown=False)
        probe(llm.library(unknown), allow_unknown=True)


def test_what_a_version_can_do_is_looked_for() -> None:
    old = probe(llm.library(EngineDeadError=None), allow_unknown=False)
    found = (old.priority, old.engine_dead_error, old.health_check, old.disk_cache, old.retention)
    assert found == (False, False, False, False, True)
    assert not probe(llm.library(KvCacheRetentionConfig=None), allow_unknown=False).retention

    class Newer(llm.LLM):
        def _check_health(self) -> bool:
            return True

        def generate_async(self, inputs: Any, priority: float = 0.5, **_: Any) -> Any:  # type: ignore[override]
            raise NotImplementedError

    class Scheduler:
        def __init__(self, waiting_queue_policy: str = "fcfs") -> None: ...

    new = probe(llm.library(LLM=Newer, SchedulerConfig=Scheduler), allow_unknown=False)
    assert new.priority
    assert new.health_check
    assert new.engine_dead_error


@pytest.mark.trtllm
def test_the_installed_package_is_what_was_read() -> None:
    pytest.importorskip("tensorrt_llm")
    assert differences() == []
    probe(load_library(), allow_unknown=False)
