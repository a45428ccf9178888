"""What settings become: the arguments of `LLM(...)`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.trtllm import params
from fakes.trtllm.llm import LLM, library
from models_fixture import tiny_model
from unit.executor.trtllm.making import config, running
from weir_chassis.errors import Unsupported
from weir_executor import engines
from weir_executor.model_files import ModelFiles
from weir_executor.settings import ExecutorSettings
from weir_executor.trtllm import load
from weir_executor.trtllm.config import ADAPTER_MODULES, TrtConfig, llm_arguments
from weir_executor.trtllm.probe import probe
from weir_executor.trtllm.retention import Retention


def arguments(lib: Any = None, **fields: Any) -> dict[str, Any]:
    lib = lib or library()
    return llm_arguments(config(**fields), lib, probe(lib, allow_unknown=False), 512)


def test_ranks_and_nodes_are_told_by_their_own_settings() -> None:
    told = arguments(tensor_parallel=8, pipeline_parallel=2, expert_parallel=4, gpus_per_node=8)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (8, 2)
    assert (told["moe_expert_parallel_size"], told["gpus_per_node"]) == (4, 8)
    assert not {"moe_expert_parallel_size", "gpus_per_node"} & arguments().keys(), "the engine's own choice"


def test_how_weights_are_quantized_is_the_checkpoints_own_word() -> None:
    told = arguments(kv_dtype="fp8")
    assert not [name for name in told if "quant" in name]
    assert (told["dtype"], told["kv_cache_config"].dtype) == ("auto", "fp8")


def test_what_runs_is_not_pushed_out_and_parts_of_blocks_are_not_shared() -> None:
    told = arguments(host_cache_bytes=1 << 30)
    assert told["scheduler_config"].capacity_scheduler_policy == "GUARANTEED_NO_EVICT"
    cache = told["kv_cache_config"]
    assert (cache.enable_partial_reuse, cache.tokens_per_block, cache.host_cache_size) == (False, 16, 1 << 30)
    assert (cache.event_buffer_max_size, told["enable_iter_perf_stats"]) == (100_000, True)
    assert arguments(prefix_cache=False)["kv_cache_config"].event_buffer_max_size == 0
    assert (told["enable_chunked_prefill"], told["max_beam_width"], told["max_seq_len"]) == (True, 1, 512)


def test_a_disk_tier_needs_a_version_that_has_one(tmp_path: Path) -> None:
    disk = {"disk_cache_bytes": 1 << 30, "disk_cache_dir": tmp_path}
    with pytest.raises(Unsupported, match="disk tier"):
        arguments(**disk)

    class Newer(params.KvCacheConfig):
        def __init__(self, disk_cache_size: int = 0, disk_cache_path: str = "", **others: Any) -> None:
            super().__init__(**others)
            self.disk = (disk_cache_size, disk_cache_path)

    lib = library(KvCacheConfig=Newer)
    can = replace(probe(lib, allow_unknown=False), disk_cache=True)
    cache = llm_arguments(config(**disk), lib, can, 512)["kv_cache_config"]
    assert cache.disk == (1 << 30, str(tmp_path))


def test_the_queue_heeds_priorities_where_there_is_such_a_queue() -> None:
    class Newer(params.SchedulerConfig):
        def __init__(self, waiting_queue_policy: str = "fcfs", **others: Any) -> None:
            super().__init__(**others)
            self.waiting_queue_policy = waiting_queue_policy

    lib = library(SchedulerConfig=Newer)
    can = replace(probe(lib, allow_unknown=False), priority=True)
    assert llm_arguments(config(), lib, can, 512)["scheduler_config"].waiting_queue_policy == "priority"


def test_adapters_are_told_what_they_may_change() -> None:
    """The engine does not start without, as long as it has no adapter to look at."""
    assert "lora_config" not in arguments()
    told = arguments(max_adapters=3, max_adapter_rank=16)
    assert told["enable_lora"]
    lora = told["lora_config"]
    assert (lora.max_loras, lora.max_cpu_loras, lora.max_lora_rank) == (3, 3, 16)
    assert lora.lora_target_modules == list(ADAPTER_MODULES)
    only = arguments(max_adapters=1, adapter_modules=("attn_q", "attn_v"))
    assert only["lora_config"].lora_target_modules == ["attn_q", "attn_v"]
    with pytest.raises(RuntimeError, match="worker returned error"), running(max_adapters=1, adapter_modules=()):
        pass


def test_speculation_is_what_the_version_takes() -> None:
    asked = {"decoding_type": "NGram", "max_draft_len": 3}
    told = arguments(speculation=asked)["speculative_config"]
    assert isinstance(told, params.DecodingBaseConfig)
    assert (told.decoding_type, told.max_draft_len) == ("NGram", 3)
    assert arguments(library(make_speculation=None), speculation=asked)["speculative_config"] == asked
    with pytest.raises(ValueError, match="Invalid decoding type: telepathy"):
        arguments(speculation={"decoding_type": "telepathy"})


def test_settings_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of them, by other values than the defaults."""
    heard: list[TrtConfig] = []
    monkeypatch.setattr(load, "load_engine", lambda config, **_: heard.append(config))
    settings = ExecutorSettings(
        model_dir=tiny_model("llama3"),
        model="tiny",
        engine="trtllm",
        tensor_parallel=2,
        pipeline_parallel=3,
        num_blocks=10,
        block_size=64,
        max_num_seqs=7,
        max_batched_tokens=99,
        max_waiting=5,
        max_model_len=300,
        prefix_cache=False,
        max_adapters=2,
        max_adapter_rank=8,
        trtllm_kv_cache_fraction=0.5,
        trtllm_kv_dtype="fp8",
        trtllm_host_cache_bytes=1,
        trtllm_disk_cache_bytes=2,
        trtllm_disk_cache_dir=Path("disk"),
        trtllm_expert_parallel=4,
        trtllm_gpus_per_node=8,
        trtllm_guided_backend="none",
        trtllm_stream_interval=6,
        trtllm_speculation={"decoding_type": "MTP"},
        trtllm_retention={"prompt_priority": 60, "output_seconds": 9},  # type: ignore[arg-type]
        trtllm_adapter_modules=["attn_q"],
        trtllm_cache_transceiver="UCX",
        trtllm_allow_unknown_version=True,
        trtllm_extra={"attn_backend": "FLASHINFER"},
        dtype="bfloat16",
    )
    engines.load_engine(settings, ModelFiles(None, None, {}))  # type: ignore[arg-type]
    (told,) = heard
    default = TrtConfig(model_dir=settings.model_dir)
    same = [name for name in TrtConfig.__dataclass_fields__ if getattr(told, name) == getattr(default, name)]
    assert same == ["model_dir", "connector"], "a setting that goes nowhere, or one that is not here"
    assert told.retention == Retention(prompt_priority=60, output_seconds=9)
    assert told.kv_cache_max_tokens == 640


def test_an_engine_of_many_ranks_is_asked_for_so_many() -> None:
    with running(tensor_parallel=2, expert_parallel=2, gpus_per_node=4) as (engine, llm, _):
        assert isinstance(llm, LLM)
        assert llm.arguments["moe_expert_parallel_size"] == 2
        assert engine.info.compute.endswith("tp 2")
