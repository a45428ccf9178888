"""The engine contract, held by the paged engine (a tiny model, CPU, float32), the fake, and backends over doubles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contract.engine_contract import ROOT, EngineContract
from fakes.openengine.double import OpenEngineDouble
from fakes.trtllm.llm import LLM, library, never
from models_fixture import tiny_model
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.load import load_engine as load_openengine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.trtllm.config import Transceiver, TrtConfig
from weir_executor.trtllm.load import load_engine as load_trtllm

_SMALL: dict[str, Any] = {"num_blocks": 128, "max_num_seqs": 16, "max_batched_tokens": 128, "check_integrity": True}
# Twenty-five steps of these are longer than a thread waits for its turn on a busy machine.
_SLOW_SECONDS = 0.02


class TestPagedEngine(EngineContract):
    def make_engine(self, **limits: Any) -> Engine:
        return load_engine(PagedEngineConfig(tiny_model("llama3"), num_threads=1, **{**_SMALL, **limits}))


class TestFakeEngine(EngineContract):
    def make_engine(self, **limits: Any) -> Engine:
        return FakeEngine(FakeEngineConfig(max_model_len=512, **{**_SMALL, **limits}))

    def make_slow_engine(self, **limits: Any) -> Engine:
        return self.make_engine(step_seconds=_SLOW_SECONDS, **limits)


class _SlowLLM(LLM):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.step_seconds = _SLOW_SECONDS


class TestTrtllmEngine(EngineContract):
    """Our TensorRT-LLM backend over a fake `LLM`. What the real one has not, it is not asked for.

    It makes no vectors; its blocks go from engine to engine by its own transceiver, and nobody else reads them; what
    runs there is never pushed out (GUARANTEED_NO_EVICT); its generators count steps.
    """

    pools = shows_blocks = preempts = position_keyed = False

    def make_engine(self, **limits: Any) -> Engine:
        return self._make_engine(LLM, **limits)

    def make_slow_engine(self, **limits: Any) -> Engine:
        return self._make_engine(_SlowLLM, **limits)

    def _make_engine(self, llm: type[LLM], **limits: Any) -> Engine:
        told = {**_SMALL, **limits}
        config = TrtConfig(
            model_dir=tiny_model("llama3"),
            max_model_len=512 if told["num_blocks"] * 16 >= 512 else told["num_blocks"] * 16,
            block_size=16,
            kv_cache_max_tokens=told["num_blocks"] * 16,
            max_num_seqs=told["max_num_seqs"],
            max_batched_tokens=told["max_batched_tokens"],
            max_waiting=told.get("max_waiting", 256),
            prefix_cache=told.get("prefix_cache", True),
            transceiver=Transceiver(),
        )
        return load_trtllm(config, library(LLM=llm), end_process=never)


class TestOpenEngine(EngineContract):
    """Our backend for `openengine.v1` over a double of such a server. What the contract has no word for is refused."""

    pools = hands_off = shows_blocks = preempts = position_keyed = biases = holds_back_stops = False

    @pytest.fixture(autouse=True)
    def _doubles(self) -> Iterator[None]:
        self.doubles: list[OpenEngineDouble] = []
        yield
        for double in self.doubles:
            double.close()

    def make_engine(self, **limits: Any) -> Engine:
        told = {**_SMALL, **limits}
        longest = min(512, told["num_blocks"] * 16)
        double = OpenEngineDouble(
            tiny_model("llama3"),
            max_model_len=longest,
            block_size=16,
            kv_cache_max_tokens=told["num_blocks"] * 16,
            max_num_seqs=told["max_num_seqs"],
            max_batched_tokens=told["max_batched_tokens"],
            prefix_cache=told.get("prefix_cache", True),
        )
        self.doubles.append(double)
        config = OpenEngineConfig(
            address=double.address,
            model="tiny",
            vocab_size=320,
            eos_token_ids=frozenset({2}),
            max_model_len=512,
            plain_scope=ROOT,
            max_waiting=told.get("max_waiting", 256),
        )
        return load_openengine(config)
