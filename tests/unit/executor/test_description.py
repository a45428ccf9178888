"""What an executor says of itself: what it serves, can do, runs at once and costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from weir.inference.v1.model_pb2 import ModelVersion
from weir_executor.description import describe
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.mapping import Served
from weir_executor.request import Sampling
from weir_executor.settings import ExecutorSettings

VERSION = ModelVersion(model="m", revision="r", tokenizer_hash="t")


def settings(**told: Any) -> ExecutorSettings:
    return ExecutorSettings.model_validate({"model_dir": Path("m"), "model": "m", **told})


def served(**changes: Any) -> Served:
    engine = FakeEngine(FakeEngineConfig())
    return Served(VERSION, replace(engine.info, **changes), Sampling(), takes_guides=True)


def test_what_it_can_do_is_named() -> None:
    said = describe(served(embedding_size=0, max_adapters=2), settings(max_num_seqs=7, weight=0.5))
    assert list(said.model_versions) == [VERSION]
    assert (said.capacity, said.weight, said.HasField("price")) == (7, 0.5, False)
    assert {"guides", "adapters"} <= set(said.capabilities)
    assert "embeddings" not in said.capabilities
    assert "embeddings" in describe(served(embedding_size=4), settings()).capabilities


def test_a_price_is_told_in_millionths_and_cached_tokens_cost_like_others_unless_said() -> None:
    told: dict[str, object] = {"prompt_micros": 5, "completion_micros": 9, "currency": "EUR"}
    price = describe(served(), settings(price=told)).price
    assert (price.prompt_micros, price.cached_prompt_micros, price.completion_micros) == (5, 5, 9)
    assert describe(served(), settings(price=told | {"cached_prompt_micros": 0})).price.cached_prompt_micros == 0


@pytest.mark.parametrize(
    "told", [{"price": {"prompt_micros": -1, "completion_micros": 1}}, {"weight": 0}, {"region": "ü" * 40}]
)
def test_what_is_no_price_weight_or_region_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**told)
