from __future__ import annotations

from typing import Any

import pytest

from fakes.trtllm.llm import library
from fakes.trtllm.params import KvCacheConfig
from models_fixture import tiny_model
from unit.executor.trtllm.making import config
from weir_chassis.errors import Unsupported
from weir_executor.trtllm.config import ConnectorConfig, Transceiver, llm_arguments
from weir_executor.trtllm.connector.check import check_arguments, check_model
from weir_executor.trtllm.probe import probe

CONNECTOR = ConnectorConfig("store:1", tiny_model("llama3"), 1 << 20, 1 << 20, 1e9)


def arguments(cache: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    fields = {"enable_partial_reuse": False, "tokens_per_block": 16, **(cache or {})}
    return {"kv_cache_config": KvCacheConfig(**fields), **others}


def test_what_a_connector_can_be_together_with() -> None:
    check_arguments(arguments(pipeline_parallel_size=1, context_parallel_size=None, max_beam_width=1), 16)
    check_arguments(arguments(tensor_parallel_size=8, gpus_per_node=8), 16)
    check_model({"num_hidden_layers": 2})
    check_model({"sliding_window": 4096, "use_sliding_window": False})
    check_model({"sliding_window": None, "layer_types": ["full_attention"] * 2})


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2"),
        ({"context_parallel_size": 4}, "context_parallel_size 4"),
        ({"max_beam_width": 2}, "max_beam_width 2"),
        ({"tensor_parallel_size": 16, "gpus_per_node": 8}, "tensor_parallel_size 16 on nodes of gpus_per_node 8"),
        ({"speculative_config": {"decoding_type": "MTP"}}, "speculative_config"),
        ({"cache_transceiver_config": object()}, "cache_transceiver_config"),
        ({"enable_attention_dp": True}, "enable_attention_dp"),
        ({"cache": {"enable_partial_reuse": True}}, "enable_partial_reuse"),
        ({"cache": {"tokens_per_block": 32}}, "tokens_per_block 32"),
        ({"cache": {"enable_block_reuse": False}}, "enable_block_reuse"),
        ({"cache": {"max_attention_window": [4096]}}, "max_attention_window"),
        ({"cache": {"host_cache_size": 1 << 30}}, "host_cache_size"),
        ({"cache": {"dtype": "nvfp4"}}, "nvfp4"),
    ],
)
def test_what_it_cannot_is_refused_by_name(told: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        check_arguments(arguments(**told), 16)


def test_the_other_keeper_of_blocks_is_refused_where_there_is_one() -> None:
    told = arguments()
    told["kv_cache_config"].use_kv_cache_manager_v2 = True
    with pytest.raises(Unsupported, match="use_kv_cache_manager_v2"):
        check_arguments(told, 16)


@pytest.mark.parametrize(
    ("model", "named"),
    [({"sliding_window": 4096}, "sliding_window 4096"), ({"layer_types": ["full_attention", "mamba"]}, "mamba")],
)
def test_models_whose_layers_remember_otherwise_are_refused(model: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        check_model(model)


def test_the_engine_is_told_of_it_and_of_nothing_that_excludes_it() -> None:
    lib = library()
    can = probe(lib, allow_unknown=False)
    told = llm_arguments(config(connector=CONNECTOR), lib, can, 512)["kv_connector_config"]
    assert told.connector_module == "weir_executor.trtllm.connector.entry"
    assert "kv_connector_config" not in llm_arguments(config(), lib, can, 512)
    for fields, named in (
        ({"pipeline_parallel": 2}, "pipeline_parallel_size"),
        ({"host_cache_bytes": 1}, "exclude one another"),
        ({"prefix_cache": False}, "enable_block_reuse"),
        ({"extra": {"context_parallel_size": 2}}, "context_parallel_size"),
        ({"extra": {"max_beam_width": 4}}, "max_beam_width"),
        ({"transceiver": Transceiver()}, "cache_transceiver_config"),
        ({"speculation": {"decoding_type": "MTP"}}, "speculative_config"),
    ):
        with pytest.raises(Unsupported, match=named):
            llm_arguments(config(connector=CONNECTOR, **fields), lib, can, 512)


def test_its_own_keeper_is_asked_for_where_there_are_two() -> None:
    class Newer(KvCacheConfig):
        def __init__(self, use_kv_cache_manager_v2: Any = "auto", **fields: Any) -> None:
            super().__init__(**fields)
            self.use_kv_cache_manager_v2 = use_kv_cache_manager_v2

    Newer.model_fields = {"use_kv_cache_manager_v2": type("Info", (), {"default": "auto"})}  # type: ignore[attr-defined]
    lib = library(KvCacheConfig=Newer)
    can = probe(lib, allow_unknown=False)
    assert llm_arguments(config(connector=CONNECTOR), lib, can, 512)["kv_cache_config"].use_kv_cache_manager_v2 is False
    assert llm_arguments(config(), lib, can, 512)["kv_cache_config"].use_kv_cache_manager_v2 == "auto"
