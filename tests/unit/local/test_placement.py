"""What `weir up` plans, before it starts anything."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from weir_chassis.settings import ServiceSettings
from weir_executor.settings import ExecutorSettings
from weir_kvstore.settings import KvStoreSettings
from weir_local.placement import Placement, PlacementError, PlannedService, find_model, plan
from weir_postprocess.settings import PostprocessSettings
from weir_router.settings import RouterSettings
from weir_tokenizer.settings import TokenizerSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "executor": ExecutorSettings,
    "kvstore": KvStoreSettings,
    "postprocess": PostprocessSettings,
    "router": RouterSettings,
    "tokenizer": TokenizerSettings,
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    return tmp_path / "tiny"


def ports() -> Callable[[], int]:
    return count(5000).__next__


def of(service: str, plans: list[PlannedService]) -> list[PlannedService]:
    return [planned for planned in plans if planned.service == service]


def test_five_services_the_router_last_and_told_of_the_others(model_dir: Path) -> None:
    plans = plan(Placement(model_dir, executors=2, port=7700), ports())
    assert [p.service for p in plans] == ["kvstore", "tokenizer", "postprocess", "executor", "executor", "router"]
    router = plans[-1]
    assert router.address == "127.0.0.1:7700"
    assert router.settings["executors"].split(",") == [p.address for p in of("executor", plans)]
    assert router.settings["tokenizers"] == of("tokenizer", plans)[0].address
    assert {p.settings["kvstore_address"] for p in of("executor", plans)} == {of("kvstore", plans)[0].address}


def test_no_two_services_share_an_address(model_dir: Path) -> None:
    for one_process in (False, True):
        plans = plan(Placement(model_dir, executors=3, one_process=one_process), ports())
        assert len({p.address for p in plans}) == len(plans)


@pytest.mark.parametrize("one_process", [False, True])
def test_every_service_takes_the_settings_that_it_is_given(model_dir: Path, one_process: bool) -> None:
    placement = Placement(
        model_dir,
        dtype="float32",
        kv_store_mib=1,
        one_process=one_process,
        watermark_key_file=Path("key"),
        nats_url="nats://127.0.0.1:4222",
        region="eu-west",
        kv_redis_url="redis://127.0.0.1:6379",
    )
    for planned in plan(placement, ports()):
        told = SETTINGS[planned.service].model_validate(dict(planned.settings))
        assert (told.region, told.nats_url is not None) == ("eu-west", True)


def test_the_environment_has_the_names_that_the_services_read(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = of("executor", plan(Placement(model_dir, name="m"), ports()))[0]
    for name, value in executor.environment().items():
        monkeypatch.setenv(name, value)
    settings = ExecutorSettings()  # type: ignore[call-arg]  # from the environment
    assert (settings.model, settings.model_dir, settings.port) == ("m", model_dir, int(executor.settings["port"]))


def test_in_one_process_only_the_router_has_a_port(model_dir: Path) -> None:
    plans = plan(Placement(model_dir, one_process=True), ports())
    assert all(p.address.startswith("memory:") for p in plans[:-1])
    assert plans[-1].address == "127.0.0.1:7700"


def test_prefill_and_decode_workers_come_in_place_of_whole_ones(model_dir: Path) -> None:
    plans = plan(Placement(model_dir, executors=3, prefill=2, decode=1, disaggregate_tokens=64), ports())
    assert [p.settings["role"] for p in of("executor", plans)] == ["prefill", "prefill", "decode"]
    assert plans[-1].settings["disaggregate_tokens"] == "64"
    for planned in plans:
        SETTINGS[planned.service].model_validate(dict(planned.settings))
    assert [p.settings["role"] for p in of("executor", plan(Placement(model_dir), ports()))] == ["both"]
    for half in (Placement(model_dir, prefill=1), Placement(model_dir, decode=1)):
        with pytest.raises(PlacementError, match="go together"):
            plan(half, ports())


def test_a_draft_model_guesses_by_default_and_must_be_there(model_dir: Path, tmp_path: Path) -> None:
    (executor,) = of("executor", plan(Placement(model_dir, draft_model=model_dir), ports()))
    assert executor.settings["draft_model_dir"] == str(model_dir)
    assert executor.settings["speculation"] == "draft_model"
    with pytest.raises(FileNotFoundError, match="missing"):
        plan(Placement(model_dir, draft_model=tmp_path / "missing"), ports())


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        find_model(tmp_path)


def test_the_default_is_the_demo_that_the_repository_ships() -> None:
    assert find_model(None).name == "demo"


def test_a_file_of_tiers_says_all_of_the_kvstores_tiers(model_dir: Path, tmp_path: Path) -> None:
    tiers, trace = tmp_path / "tiers.toml", tmp_path / "trace.jsonl"
    tiers.write_text('[[tier]]\nkind = "ram"\nmax_bytes = "2MiB"\n')
    plans = plan(Placement(model_dir, kv_tiers_file=tiers, kv_trace_file=trace), ports())
    settings = KvStoreSettings.model_validate(dict(of("kvstore", plans)[0].settings))
    assert (settings.tiers_file, settings.trace_file) == (tiers, trace)
    with pytest.raises(PlacementError, match="name the Redis there"):
        plan(Placement(model_dir, kv_tiers_file=tiers, kv_redis_url="redis://127.0.0.1"), ports())


def test_the_router_is_given_its_own_file(model_dir: Path, tmp_path: Path) -> None:
    routing = tmp_path / "routing.toml"
    routing.write_text('[defaults]\npolicy = "prefix_aware"\n')
    (router,) = of("router", plan(Placement(model_dir, routing_file=routing), ports()))
    settings = RouterSettings.model_validate(router.settings)
    assert settings.routing().of_model("any").policy == "prefix_aware"
    assert "config_file" not in of("router", plan(Placement(model_dir), ports()))[0].settings
