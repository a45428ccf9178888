"""A server that dies, drains, comes back, and comes back as another."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_fixture import save_adapter
from contract.engine_contract import ROOT, hashes, prompt, request
from fakes.openengine.double import Traits
from models_fixture import tiny_model
from unit.executor.openengine.making import running
from unit.executor.trtllm.making import until
from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import Draining, NotFound, Unsupported, WorkerLost
from weir_executor.adapters.files import read_config
from weir_executor.openengine import link
from weir_executor.openengine.link import closed


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(link, "_LAST_BACKOFF_SECONDS", 0.2)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (pb.HEALTH_STATE_UNSPECIFIED, None),
        (pb.HEALTH_STATE_READY, None),
        (pb.HEALTH_STATE_DEGRADED, None),
        (pb.HEALTH_STATE_STARTING, WorkerLost),
        (pb.HEALTH_STATE_NOT_READY, WorkerLost),
        (pb.HEALTH_STATE_DRAINING, Draining),
        (99, None),
    ],
)
def test_slow_is_not_closed_and_what_nobody_knows_is_no_reason(
    state: pb.HealthState.ValueType, why: type[Exception] | None
) -> None:
    checks = [pb.HealthCheck(name="grpc", state=pb.HEALTH_STATE_READY), pb.HealthCheck(name="model", state=state)]
    found = closed(pb.HealthResponse(state=state, checks=checks))
    assert type(found) is (why or type(None))
    assert found is None or "(model)" in str(found)


def test_a_server_that_dies_takes_its_requests_and_blocks_with_it_and_may_come_back() -> None:
    known = hashes(prompt(40), 16)
    with running() as (engine, double, heard):
        double.llm.step_seconds = 0.005
        engine.submit(request(1, prompt(40), 300, n=2, block_hashes=known, cache_scope=ROOT))
        until(lambda: engine.cached_prefix_blocks(known) == 2)
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        double.kill()
        (end,) = heard.wait_for_ends(1)
        assert isinstance(end.error, WorkerLost)
        until(lambda: engine.load().away)
        assert engine.cached_prefix_blocks(known) == 0
        with pytest.raises(WorkerLost, match="lost"):
            engine.submit(request(2, prompt(5), 2))
        engine.check_health()
        double.revive()
        until(lambda: not engine.load().away)
        engine.submit(request(3, prompt(40), 4, block_hashes=known, cache_scope=ROOT))
        assert heard.wait_for_ends(3)[0].error is None
        until(lambda: engine.cached_prefix_blocks(known) == 2)


def test_a_server_that_drains_takes_nothing_new_and_ends_what_it_has() -> None:
    with running() as (engine, double, heard):
        double.llm.hang()
        engine.submit(request(1, prompt(5), 20))
        until(lambda: double.num_active)
        double.traits.health = pb.HEALTH_STATE_DRAINING
        until(lambda: engine.load().away)
        with pytest.raises(Draining):
            engine.submit(request(2, prompt(5), 2))
        double.llm.resume()
        assert heard.wait_for_ends(1)[0].error is None
        assert len(heard.tokens[1, 0]) == 20
        double.traits.health = pb.HEALTH_STATE_READY
        until(lambda: not engine.load().away)


def test_a_server_without_a_health_call_is_healthy_as_long_as_it_answers() -> None:
    with running(Traits(hides_health=True)) as (engine, _, heard):
        engine.submit(request(1, prompt(5), 4))
        assert heard.wait_for_ends(1)[0].error is None
        assert not engine.load().away


def test_a_server_that_answers_nothing_is_away() -> None:
    with running(call_seconds=0.1) as (engine, double, heard):
        double.llm.step_seconds = 0.005
        engine.submit(request(1, prompt(5), 400))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        double.traits.is_stuck = True
        assert isinstance(heard.wait_for_ends(1)[0].error, WorkerLost)
        assert engine.load().away
        double.traits.is_stuck = False
        until(lambda: not engine.load().away)


def test_one_that_comes_back_as_another_stays_away_until_it_is_right_again() -> None:
    with running() as (engine, double, heard):
        double.kill()
        until(lambda: engine.load().away)
        double.traits.model = "other"
        double.revive()
        until(lambda: double.traits.described >= 2)
        assert engine.load().away, "it would have taken our model's name for its own"
        double.traits.model, double.traits.max_top = "tiny", 3
        until(lambda: double.traits.described >= 6)
        assert engine.load().away, "requests were told that there are more candidates"
        double.traits.max_top = 20
        until(lambda: not engine.load().away)
        engine.submit(request(1, prompt(5), 4))
        assert heard.wait_for_ends(1)[0].error is None


def test_another_model_behind_the_address_is_noticed_without_any_call_that_fails() -> None:
    with running() as (engine, double, _):
        double.traits.model = "other"
        until(lambda: engine.load().away)
        double.traits.model = "tiny"
        until(lambda: not engine.load().away)


def test_another_server_in_its_place_gets_what_the_first_was_given(tmp_path: Path) -> None:
    directory = tmp_path / "law"
    save_adapter(directory, tiny_model("llama3"))
    with running(Traits(knows_loras=True)) as (engine, double, heard):
        engine.load_adapter("law", directory, read_config(directory, 64), lambda _, __: None)
        (first,) = double.traits.loras.values()
        double.traits.loras.clear()
        double.traits.instance_id = "two"
        until(lambda: double.traits.loras)
        until(lambda: not engine.load().away)
        assert list(double.traits.loras.values()) == [first]
        engine.submit(request(1, prompt(5), 2, adapter="law"))
        assert heard.wait_for_ends(1)[0].error is None


def test_a_server_that_has_forgotten_an_adapter_is_given_it_again(tmp_path: Path) -> None:
    directory = tmp_path / "law"
    save_adapter(directory, tiny_model("llama3"))
    with running(Traits(knows_loras=True)) as (engine, double, heard):
        info = engine.load_adapter("law", directory, read_config(directory, 64), lambda _, __: None)
        told = double.traits.loras["law"]
        assert (told.lora_id, told.source_path) == (1 + int(info.fingerprint[:15], 16), str(directory))
        double.traits.loras.clear()
        engine.submit(request(1, prompt(5), 2, adapter="law"))
        assert heard.wait_for_ends(1)[0].error is not None
        until(lambda: double.traits.loras)
        engine.submit(request(2, prompt(5), 2, adapter="law"))
        assert heard.wait_for_ends(2)[0].error is None
        engine.unload_adapter("law")
        assert not double.traits.loras
        with pytest.raises(NotFound):
            engine.submit(request(3, prompt(5), 2, adapter="law"))


def test_adapters_end_at_the_servers_limit_and_where_it_has_none(tmp_path: Path) -> None:
    directory = tmp_path / "law"
    save_adapter(directory, tiny_model("llama3"))
    config = read_config(directory, 64)
    with running(Traits(knows_loras=True)) as (engine, _, __):
        for name in ("a", "b"):
            engine.load_adapter(name, directory, config, lambda _, __: None)
        with pytest.raises(Unsupported, match="the limit is 2"):
            engine.load_adapter("c", directory, config, lambda _, __: None)
    with running() as (engine, _, __):
        assert (engine.info.max_adapters, engine.info.max_adapter_rank) == (0, 0)
        with pytest.raises(Unsupported):
            engine.load_adapter("a", directory, config, lambda _, __: None)
