"""An engine over a double of such a server, small enough to reach its limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from contract.engine_contract import ROOT, Listener
from fakes.openengine.double import OpenEngineDouble, Traits
from models_fixture import tiny_model
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.engine import OpenEngine
from weir_executor.openengine.load import load_engine


@contextmanager
def serving(traits: Traits | None = None) -> Iterator[OpenEngineDouble]:
    double = OpenEngineDouble(
        tiny_model("llama3"),
        traits=traits,
        max_model_len=512,
        block_size=16,
        kv_cache_max_tokens=1024,
        max_num_seqs=4,
        max_batched_tokens=64,
    )
    try:
        yield double
    finally:
        double.close()


def config(double: OpenEngineDouble, **fields: Any) -> OpenEngineConfig:
    told: dict[str, Any] = {
        "address": double.address,
        "model": "tiny",
        "vocab_size": 320,
        "eos_token_ids": frozenset({2}),
        "max_model_len": 512,
        "plain_scope": ROOT,
    }
    return OpenEngineConfig(**{**told, **fields})


@contextmanager
def using(double: OpenEngineDouble, **fields: Any) -> Iterator[tuple[OpenEngine, Listener]]:
    engine, heard = load_engine(config(double, **fields)), Listener()
    engine.start(heard)
    try:
        yield engine, heard
    finally:
        engine.close()
        assert not heard.wrongs, heard.wrongs


@contextmanager
def running(traits: Traits | None = None, **fields: Any) -> Iterator[tuple[OpenEngine, OpenEngineDouble, Listener]]:
    with serving(traits) as double, using(double, **fields) as (engine, heard):
        yield engine, double, heard
