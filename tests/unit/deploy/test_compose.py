"""The compose files: what services are told is theirs to be told, and what one name means it means everywhere."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from unit.deploy.dockerfile import read
from unit.deploy.test_images import BUILDS, IMAGES
from unit.deploy.what_is_deployed import (
    DEPLOY,
    MPI_VARIABLES,
    PORTS,
    SETTINGS,
    VARIABLES,
    VERSION,
    read_yaml,
    seconds,
    size,
)
from weir_chassis.settings import load_settings
from weir_executor.trtllm import engine as trtllm_engine
from weir_router.settings import RouterSettings

COMPOSE = DEPLOY / "compose"
(STACK,) = read_yaml(COMPOSE / "compose.yaml")
(GPU,) = read_yaml(COMPOSE / "compose.gpu.yaml")
ROOMS = ["compose", "images", "kubernetes"]
OURS = {name: service for name, service in STACK["services"].items() if name in SETTINGS}


def told(*files: str) -> dict[str, str]:
    """What the files of variables say, the last one last."""
    lines = [line for file in files for line in (COMPOSE / file).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def settings(service: str, image: str, monkeypatch: pytest.MonkeyPatch, *files: str) -> Any:
    """As the service in its container reads them."""
    for name in list(os.environ):
        if name.startswith("WEIR_"):
            monkeypatch.delenv(name)
    dockerfile, runs, *_ = BUILDS[image]
    environment = read(IMAGES / f"{dockerfile}.Dockerfile").whole(runs).environment() | told(*files)
    for name, value in environment.items():
        if name.startswith("WEIR_"):
            monkeypatch.setenv(name, value)
    return load_settings(SETTINGS[service])


def test_all_five_are_there_with_nats_and_redis() -> None:
    assert STACK["services"].keys() == SETTINGS.keys() | {"nats", "redis"}
    assert GPU["services"].keys() == {"executor"}


@pytest.mark.parametrize("service", SETTINGS)
def test_what_a_service_is_told_are_settings_of_its(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("weir.env").keys() <= VARIABLES.keys()
    found = settings(service, service, monkeypatch, "weir.env")
    assert (found.port, found.metrics_port, found.host) == (PORTS[service], PORTS[service] + 2000, "0.0.0.0")
    assert found.advertise == f"{service}:{PORTS[service]}"
    assert found.nats_url.get_secret_value() == "nats://nats:4222"


def test_what_the_gpu_executor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("weir.gpu.env").keys() <= VARIABLES.keys()
    found = settings("executor", "executor-trtllm", monkeypatch, "weir.env", "weir.gpu.env")
    assert found.engine == "trtllm"
    (device,) = GPU["services"]["executor"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "${WEIR_GPUS:-1}", "capabilities": ["gpu"]}
    assert f"${{WEIR_GPUS:-{found.tensor_parallel}}}" == device["count"]
    assert GPU["services"]["executor"]["env_file"] == ["weir.env", "weir.gpu.env"]


def test_addresses_are_those_of_the_services() -> None:
    variables = told("weir.env")
    for variable, service in {
        "WEIR_ROUTER_TOKENIZERS": "tokenizer",
        "WEIR_ROUTER_POSTPROCESSORS": "postprocess",
        "WEIR_ROUTER_EXECUTORS": "executor",
        "WEIR_EXECUTOR_KVSTORE_ADDRESS": "kvstore",
    }.items():
        assert variables[variable] == f"{service}:{PORTS[service]}"
    redis = {name: value for name, value in variables.items() if name.endswith("REDIS_URL")}
    assert len(set(redis.values())) == len(redis) == 2, "two uses of one server, in databases of their own"


@pytest.mark.parametrize("name", STACK["services"])
def test_a_container_writes_where_it_may_and_is_started_again(name: str) -> None:
    container = STACK["services"][name] | GPU["services"].get(name, {})
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["restart"] == "unless-stopped"
    assert "max-size" in container["logging"]["options"]


def test_what_an_engine_compiles_it_can_load() -> None:
    """Docker mounts a tmpfs so that nothing in it is executed, unless told."""
    assert OURS["executor"]["tmpfs"] == ["/tmp:exec"]
    for image in ("executor-cuda", "executor-trtllm"):
        dockerfile, runs, *_ = BUILDS[image]
        assert read(IMAGES / f"{dockerfile}.Dockerfile").whole(runs).environment()["HOME"] == "/tmp"


@pytest.mark.parametrize("service", SETTINGS)
def test_a_container_is_its_services_and_is_given_time(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = OURS[service]
    assert container["image"] == f"${{WEIR_REGISTRY:-weir}}/{service}:${{WEIR_TAG:-{VERSION}}}"
    drain = settings(service, service, monkeypatch, "weir.env").drain_seconds
    assert seconds(container["stop_grace_period"]) > drain


def test_the_gpu_executor_is_given_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    container = GPU["services"]["executor"]
    assert container["image"] == f"${{WEIR_REGISTRY:-weir}}/executor-trtllm:${{WEIR_TAG:-{VERSION}}}"
    assert size(container["shm_size"]) >= 1 << 30
    assert container["ulimits"] == {"memlock": -1, "stack": 64 << 20}  # as NVIDIA's image wants to be run
    drain = settings("executor", "executor-trtllm", monkeypatch, "weir.env", "weir.gpu.env").drain_seconds
    assert seconds(container["stop_grace_period"]) > drain + engine_end_seconds()
    assert seconds(container["healthcheck"]["start_period"]) >= largest_start_seconds()


def largest_start_seconds() -> float:
    """Of the largest models, from a slow disk."""
    return float(RouterSettings.model_fields["operation_seconds"].default)


def engine_end_seconds() -> float:
    """What the engine's end may take."""
    return trtllm_engine._WIND_UP_SECONDS + trtllm_engine._SHUTDOWN_SECONDS + trtllm_engine._LOOP_SECONDS


def test_who_is_depended_on_says_when_it_is_ready() -> None:
    """Ours by their image's own check."""
    for name, container in STACK["services"].items():
        assert name in OURS or "healthcheck" in container
        for other, condition in container.get("depends_on", {}).items():
            assert other in STACK["services"]
            assert condition == {"condition": "service_healthy"}


def test_only_this_machine_reaches_the_router_and_nobody_the_others() -> None:
    published = {name: container["ports"] for name, container in STACK["services"].items() if "ports" in container}
    assert published == {"router": [f"${{WEIR_PUBLISH:-127.0.0.1:{PORTS['router']}}}:{PORTS['router']}"]}


def test_volumes_are_where_the_settings_look(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {name for container in STACK["services"].values() for name in container.get("volumes", ())}
    assert {each.partition(":")[0] for each in named if not each.startswith("$")} == STACK["volumes"].keys()
    kvstore = settings("kvstore", "kvstore", monkeypatch, "weir.env")
    assert "arena:/run/weir" in OURS["kvstore"]["volumes"]
    assert "arena:/run/weir" in OURS["executor"]["volumes"], "both must find it by the same path"
    assert str(kvstore.arena_dir) == "/run/weir"
    assert str(kvstore.disk_path).startswith("/var/lib/weir")
    assert "kvstore:/var/lib/weir" in OURS["kvstore"]["volumes"]
    model = "${WEIR_MODEL_DIR:-../models/demo}:/models/demo:ro"
    for service in ("tokenizer", "postprocess", "executor"):
        assert model in OURS[service]["volumes"]
    assert (COMPOSE / "../models/demo/config.json").exists()


def test_no_variable_is_named_that_nobody_reads() -> None:
    """In anything below deploy that is read by people or programs."""
    operators = set(re.findall(r"\$\{(WEIR_\w+):-", (COMPOSE / "compose.yaml").read_text()))
    operators |= set(re.findall(r"\$\{(WEIR_\w+):-", (COMPOSE / "compose.gpu.yaml").read_text()))
    known = VARIABLES.keys() | MPI_VARIABLES | operators | {"WEIR_NATIVE_LIBRARIES", "WEIR_NATIVE_CACHE"}
    paths = [DEPLOY / "README.md", *(path for room in ROOMS for path in (DEPLOY / room).rglob("*") if path.is_file())]
    assert len(paths) > 20
    for path in paths:
        named = set(re.findall(r"\bWEIR_[A-Z_]*[A-Z]\b", path.read_text()))
        assert named <= known, f"{path}: {named - known}"


def test_there_is_room_for_what_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kvstore = settings("kvstore", "kvstore", monkeypatch, "weir.env")
    arena = STACK["volumes"]["arena"]["driver_opts"]["o"]
    assert size(arena.partition(":-")[2].partition("}")[0]) >= kvstore.capacity_bytes * 1.125  # and what lies beside
    command = STACK["services"]["redis"]["command"]
    assert size(command[command.index("--maxmemory") + 1]) >= 2 * kvstore.redis_bytes
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
