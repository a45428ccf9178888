"""The engine contract, held by the paged engine (a tiny model, CPU, float32) and by the fake."""

from __future__ import annotations

from typing import Any

from contract.engine_contract import EngineContract
from models_fixture import tiny_model
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.paged.engine import PagedEngineConfig, load_engine

_SMALL: dict[str, Any] = {"num_blocks": 128, "max_num_seqs": 16, "max_batched_tokens": 128, "check_integrity": True}


class TestPagedEngine(EngineContract):
    def make_engine(self, **limits: Any) -> Engine:
        return load_engine(PagedEngineConfig(tiny_model("llama3"), num_threads=1, **{**_SMALL, **limits}))


class TestFakeEngine(EngineContract):
    def make_engine(self, **limits: Any) -> Engine:
        return FakeEngine(FakeEngineConfig(max_model_len=512, **{**_SMALL, **limits}))
