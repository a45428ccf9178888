"""Our picture of TensorRT-LLM beside what packages that run on it use, where `make test` has fetched them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from oracles.trtllm_names import compare, read
from weir_executor.trtllm.surface import surface

ORACLES = Path(__file__).parents[4] / ".weir/oracles"
# What everything here rests on: without these, the rest would be no use.
CORE = {
    "tensorrt_llm.LLM",
    "tensorrt_llm.LLM.generate_async",
    "tensorrt_llm.SamplingParams",
    "tensorrt_llm.LLM.generate_async(streaming=)",
    "tensorrt_llm.LLM.generate_async(cache_salt=)",
    "tensorrt_llm.LLM.generate_async(priority=)",
    "tensorrt_llm.SamplingParams(stop_token_ids=)",
    "tensorrt_llm.SamplingParams(guided_decoding=)",
    "tensorrt_llm.executor.utils.RequestError",
    "tensorrt_llm.llmapi.KvCacheConfig(event_buffer_max_size=)",
    "tensorrt_llm.llmapi.SchedulerConfig(capacity_scheduler_policy=)",
    *(
        f"tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector.KvCacheConnector{each}"
        for each in (
            "Scheduler.get_num_new_matched_tokens(num_computed_tokens=)",
            "Scheduler.update_state_after_alloc(block_ids=)",
            "Scheduler.build_connector_meta(scheduler_output=)",
            "Scheduler.request_finished(cache_block_ids=)",
            "Worker.register_kv_caches(kv_cache_tensor=)",
            "Worker.start_load_kv(stream=)",
            "Worker.wait_for_save(stream=)",
            "Worker.get_finished(started_loading_req_ids=)",
        )
    ),
    "RequestOutput.cached_tokens",
    "CompletionOutput.token_ids",
    "CompletionOutput.finish_reason",
    "CompletionOutput.stop_reason",
    "arguments['skip_tokenizer_init']",
    "arguments['max_num_tokens']",
    "events['event_id']",
    "events['parent_hash']",
    "stats['kvCacheStats']",
}


def wheel(directory: Path, text: str, name: str = "dynamo/trtllm/engine.py") -> Path:
    with zipfile.ZipFile(directory / "other-1-py3-none-any.whl", "w") as archive:
        archive.writestr(name, text)
    return directory


@pytest.mark.skipif(not any(ORACLES.glob("*.whl")), reason="not fetched: make test does")
def test_those_who_run_on_it_use_it_as_we_do() -> None:
    report = compare(read(ORACLES), surface())
    assert report.disagreements == []
    assert CORE - set(report.confirmed) == set()
    assert len(report.confirmed) > len(report.unconfirmed)


def test_a_keyword_that_we_have_never_heard_of_is_a_disagreement(tmp_path: Path) -> None:
    source = "from tensorrt_llm.llmapi import KvCacheConfig\nKvCacheConfig(tokens_per_block=32, page_size=4)"
    report = compare(read(wheel(tmp_path, source)), surface())
    assert [line.partition(":")[0] for line in report.disagreements] == ["KvCacheConfig(page_size=…)"]
    assert "tensorrt_llm.llmapi.KvCacheConfig(tokens_per_block=)" in report.confirmed


def test_a_hook_with_a_parameter_that_we_have_never_heard_of_is_a_disagreement(tmp_path: Path) -> None:
    source = """
class Theirs(KvCacheConnectorScheduler):
    def request_finished(self, request, cache_block_ids, reason): ...
    def helper(self, anything): ...
"""
    report = compare(read(wheel(tmp_path, source)), surface())
    assert [line.partition(":")[0] for line in report.disagreements] == ["request_finished(reason=…)"]


def test_what_is_not_about_it_and_their_tests_are_not_read(tmp_path: Path) -> None:
    for name in ("dynamo/vllm/engine.py", "dynamo/trtllm/tests/test_engine.py"):
        uses = read(wheel(tmp_path, "from tensorrt_llm import LLM", name))
        assert not uses.imports
