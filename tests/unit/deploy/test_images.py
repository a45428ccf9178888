"""Each image holds one service and what it needs, listens where everybody else looks for it, and is nobody's root."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from oracles.trtllm_stand_in.metadata import REQUIRES
from oracles.trtllm_stand_in.metadata import VERSION as TRTLLM_VERSION
from unit.deploy.dockerfile import Stage, read
from unit.deploy.what_is_deployed import DEPLOY, PORTS, ROOT, SETTINGS, VARIABLES, VERSION
from weir_executor.native.build import LIBRARIES
from weir_executor.trtllm.surface import surface

IMAGES = DEPLOY / "images"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Image → Dockerfile, the stage that is run, the one in which it is installed, service, extras.
BUILDS = {
    **{
        service: ("service", service, f"install-{service}", service, {service, "nats"})
        for service in ("tokenizer", "kvstore", "postprocess")
    },
    "router": ("service", "router", "install-router", "router", {"router", "nats", "redis"}),
    "executor": ("executor", "cpu", "install", "executor", {"executor", "nats"}),
    "executor-cuda": ("executor", "cuda", "install", "executor", {"executor", "nats"}),
    "executor-trtllm": ("executor-trtllm", "final", "final", "executor", {"trtllm", "nats"}),
}


def stages(image: str) -> tuple[Stage, Stage]:
    """The one that is run, and the one in which it is installed."""
    name, runs, installs, _, _ = BUILDS[image]
    dockerfile = read(IMAGES / f"{name}.Dockerfile")
    return dockerfile.whole(runs), dockerfile.whole(installs)


@pytest.mark.parametrize("image", BUILDS)
def test_an_image_holds_one_service_and_what_all_share(image: str) -> None:
    _, installs = stages(image)
    *_, service, extras = BUILDS[image]
    copied = {source for source in installs.copies() if source.startswith(("services", "protos", "clients", "tests"))}
    assert copied == {"protos/weir", "services/chassis", f"services/{service}"}
    (installed,) = re.findall(r"'\.\[(.+?)\]'", " ".join(installs.all("RUN")))
    assert set(installed.split(",")) == extras
    assert extras <= PROJECT["optional-dependencies"].keys()
    for source in installs.copies():
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("image", BUILDS)
def test_an_image_runs_its_service_where_others_look_for_it(image: str) -> None:
    runs, _ = stages(image)
    service = BUILDS[image][3]
    assert runs.command("ENTRYPOINT") == ["python3", "-m", f"weir_{service}"]
    assert importlib.util.find_spec(f"weir_{service}.__main__")
    environment, prefix = runs.environment(), f"WEIR_{service.upper()}_"
    assert environment[f"{prefix}HOST"] == "0.0.0.0"
    assert environment[f"{prefix}PORT"] == str(PORTS[service])
    assert environment[f"{prefix}METRICS_PORT"] == str(PORTS[service] + 2000)
    ours = {name for name in environment if name.startswith("WEIR_")} - {"WEIR_NATIVE_LIBRARIES"}
    assert {VARIABLES[name] for name in ours} == {service}
    assert runs.all("EXPOSE")[-1] == f"{PORTS[service]} {PORTS[service] + 2000}"
    assert runs.command("HEALTHCHECK") == ["python3", "-m", "weir_chassis.probe", f"127.0.0.1:{PORTS[service]}"]
    assert runs.all("USER")[-1] == "10001:10001"
    assert runs.all("STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize(
    ("image", "libraries"),
    [("executor", LIBRARIES), ("executor-cuda", LIBRARIES), ("executor-trtllm", ("copies",))],
)
def test_native_libraries_are_where_the_executor_is_told_to_find_them(image: str, libraries: Sequence[str]) -> None:
    runs, installs = stages(image)
    directory = runs.environment()["WEIR_NATIVE_LIBRARIES"]
    (build,) = [rest for rest in installs.all("RUN") if "weir_executor.native.build" in rest]
    moved = re.findall(r"mv /native/(\w+)-\*\.so (\S+)", build)
    assert moved == [(name, f"{directory}/{name}.so") for name in libraries]
    if runs is not installs:
        assert any(directory.startswith(f"{copied.split()[-1]}/") for copied in runs.all("COPY"))


def test_only_bases_are_named_that_can_be_replaced() -> None:
    for path in IMAGES.glob("*.Dockerfile"):
        dockerfile = read(path)
        bases = {stage.base for stage in dockerfile.stages.values()} - dockerfile.stages.keys()
        assert bases <= {f"${{{name}}}" for name in dockerfile.arguments}, bases
        for default in dockerfile.arguments.values():
            assert "latest" not in default
        assert f"weir/{path.stem if path.stem != 'service' else 'router'}:{VERSION}" in path.read_text()


def test_the_context_has_what_is_copied_and_no_weights() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {source for image in BUILDS for stage in stages(image) for source in stage.copies()}
    for source in copied:
        assert any(source == each or source.startswith(f"{each}/") for each in allowed), source
    assert not any("models" in each or "tests" in each for each in allowed)


# ── what is installed ─────────────────────────────────────────────────────────────────────────────────────────────────


def closure(requirements: Iterable[str]) -> set[str]:
    """All that they bring, by what is installed here, with its markers."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        try:
            below = requires(name) or ()
        except PackageNotFoundError:
            continue  # of another platform
        waiting += [each for each in map(Requirement, below) if each.marker is None or "extra" not in str(each.marker)]
    return found


def installed_in(image: str) -> set[str]:
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in BUILDS[image][4] for text in optional[extra])]
    return closure(texts)


@pytest.mark.parametrize("image", ["tokenizer", "kvstore", "postprocess", "router"])
def test_a_slim_image_brings_no_engine(image: str) -> None:
    engines = {"torch", "triton", "transformers", "xgrammar", "numpy", "safetensors", "sympy", "networkx"}
    assert not installed_in(image) & engines


def test_only_who_needs_a_library_brings_it() -> None:
    def who(name: str) -> set[str]:
        return {image for image in ("tokenizer", "kvstore", "postprocess", "router") if name in installed_in(image)}

    assert who("tokenizers") == {"tokenizer", "postprocess"}
    assert who("jinja2") == {"tokenizer"}
    assert who("aiohttp") == {"router"}
    assert who("redis") == {"kvstore", "router"}
    assert who("nats-py") == {"tokenizer", "kvstore", "postprocess", "router"}
    assert who("grpcio-tools") == who("pytest") == set()


def test_what_the_cpu_image_leaves_out_is_there_by_way_of_xgrammar_alone() -> None:
    (removed,) = read(IMAGES / "executor.Dockerfile").stages["install-cpu"].all("RUN")
    left_out = {canonicalize_name(name) for name in removed.partition("--yes ")[2].split()}
    optional = PROJECT["optional-dependencies"]
    others = [*PROJECT["dependencies"], *optional["executor"], *optional["nats"]]
    assert not left_out & closure(text for text in others if not text.startswith("xgrammar"))
    assert left_out <= closure(others)


def test_torch_is_of_the_version_that_the_extra_asks_for() -> None:
    (torch,) = re.findall(
        r"torch==([\d.]+)", " ".join(read(IMAGES / "executor.Dockerfile").stages["install"].all("RUN"))
    )
    assert f"torch=={torch}" in PROJECT["optional-dependencies"]["executor"]


# ── beside TensorRT-LLM ───────────────────────────────────────────────────────────────────────────────────────────────


def constraints(name: str) -> dict[str, SpecifierSet]:
    lines = (line.partition("#")[0].strip() for line in (DEPLOY / "constraints" / name).read_text().splitlines())
    found = map(Requirement, filter(None, lines))
    return {canonicalize_name(each.name): each.specifier for each in found}


def test_what_tensorrt_llm_pins_stays_as_it_is() -> None:
    """Every version that the constraints allow of what is its own, it allows too."""
    ours = constraints("trtllm.txt")
    for name, specifier in REQUIRES.items():
        wanted = {str(each) for each in SpecifierSet(specifier)}
        assert wanted <= {str(each) for each in ours[name]}, name
    assert "<7" in {str(each) for each in ours["protobuf"]}  # from 1.3 on


def test_what_is_brought_along_is_pinned_and_wanted() -> None:
    ours, tested = constraints("trtllm.txt"), constraints("dev.txt")
    optional = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *optional["trtllm"], *optional["nats"])]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        versions = ["1.26.4", "6.33.5", "0.1.32", *(pin.version for pin in ours[name] if pin.operator == "==")]
        both = ours[name] & requirement.specifier
        assert any(both.contains(version) for version in versions), f"{requirement} and {ours[name]}"
    for pinned in ours.keys() - REQUIRES.keys() - {"hatchling"}:
        assert ours[pinned] == tested[pinned], f"{pinned}: other than the tests run with"


def test_the_image_is_of_a_version_that_somebody_has_read() -> None:
    version = read(IMAGES / "executor-trtllm.Dockerfile").arguments["TRTLLM_VERSION"]
    assert version == TRTLLM_VERSION
    assert version.startswith(tuple(f"{each}." for each in surface().versions))


def check_pins(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(IMAGES / "check_pins.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path)},
    )


def test_pins_that_were_broken_stop_the_build(tmp_path: Path) -> None:
    metadata = tmp_path / "engine-1.2.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: engine", "Version: 1.2.1", "Requires-Dist: protobuf>=6.33.5,<7"]
    lines += ["Requires-Dist: numpy<1.0; extra == 'old'", "Requires-Dist: nobody>=1; python_version < '3'"]
    metadata.write_text("\n".join(lines))
    done = check_pins("engine", path=tmp_path)
    assert (done.returncode, done.stdout) == (0, "what is required is there\n")
    done = check_pins("engine[old]", path=tmp_path)
    assert done.returncode == 1
    assert "engine requires numpy<1.0; extra == 'old', and " in done.stdout


def test_the_build_looks_that_the_engines_pins_are_as_they_were() -> None:
    runs, _ = stages("executor-trtllm")
    (install,) = [rest for rest in runs.all("RUN") if "'.[" in rest]
    extras = ",".join(re.findall(r"'\.\[(.+?)\]'", install))
    assert f'&& python3 check_pins.py tensorrt_llm "weir[{extras}]"' in install
    assert "PIP_CONSTRAINT=/src/constraints.txt" in install
    assert "deploy/constraints/trtllm.txt constraints.txt" in runs.all("COPY")


# ── several nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """A node's environment, with commands that write down how they were called."""
    for command in ("ssh", "mpirun"):
        script = tmp_path / "bin" / command
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {tmp_path}/{command}.log\n')
        script.chmod(0o755)
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "id").write_text("private\n")
    (keys / "id.pub").write_text("ssh-ed25519 AAAA weir\n")
    return {
        "PATH": f"{tmp_path}/bin:{IMAGES / 'mpi'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "WEIR_MPI_KEYS": str(keys),
        "WEIR_MPI_GPUS_PER_NODE": "8",
        "WEIR_MPI_PID_FILE": str(tmp_path / "pid"),
        "LWS_LEADER_ADDRESS": "group-3.group.ns",
        "LWS_GROUP_SIZE": "3",
        "NCCL_DEBUG": "WARN",
        "WEIR_EXECUTOR_MODEL": "demo",
    }


def test_the_image_has_what_starts_ranks_on_other_nodes() -> None:
    runs, _ = stages("executor-trtllm")
    assert "--chmod=0755 deploy/images/mpi/ /usr/local/bin/" in runs.all("COPY")
    installed = {word for rest in runs.all("RUN") if "apt-get install" in rest for word in rest.split()}
    assert {"openssh-client", "openssh-server"} <= installed
    scripts = {path.name: path.read_text() for path in (IMAGES / "mpi").iterdir()}
    defaults = {name: re.findall(r"WEIR_MPI_PID_FILE:-([\w/.-]+)\}", text) for name, text in scripts.items()}
    assert defaults["weir-mpi-service"] == defaults["weir-mpi-drain"] != []
    assert {value for name in scripts for value in re.findall(r"WEIR_MPI_KEYS:-([\w/.-]+)\}", scripts[name])} == {
        "/etc/weir/mpi"
    }


def test_the_leader_waits_for_its_workers_and_starts_a_rank_for_each_gpu(node: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(["weir-mpi-leader"], env=node, check=True, timeout=60)
    asked = (tmp_path / "ssh.log").read_text().split()
    assert [word for word in asked if word.startswith("group-3")] == ["group-3-1.group.ns", "group-3-2.group.ns"]
    arguments = (tmp_path / "mpirun.log").read_text().splitlines()
    assert arguments[arguments.index("-np") + 1] == "24"
    assert arguments[arguments.index("--host") + 1] == "group-3.group.ns:8,group-3-1.group.ns:8,group-3-2.group.ns:8"
    forwarded = [name for flag, name in pairwise(arguments) if flag == "-x"]
    assert "NCCL_DEBUG" in forwarded
    assert not any(name.startswith("WEIR_") for name in forwarded)
    assert arguments[-2:] == ["trtllm-llmapi-launch", "weir-mpi-service"]
    (home,) = (each.parent for each in tmp_path.glob("tmp.*/known_hosts"))
    assert (home / "known_hosts").read_text() == "* ssh-ed25519 AAAA\n"
    assert (home / "id").stat().st_mode & 0o777 == 0o600


def test_the_drain_asks_the_service_and_waits_for_its_end(node: dict[str, str], tmp_path: Path) -> None:
    assert subprocess.run(["weir-mpi-drain"], env=node, check=False, timeout=60).returncode == 0  # nothing runs yet
    program = f"""
import pathlib, signal
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(tmp_path / "asked")!r}).touch())
pathlib.Path({str(tmp_path / "up")!r}).touch()
signal.pause()
"""
    service = subprocess.Popen([sys.executable, "-c", program])
    try:
        _until(tmp_path / "up")
        (tmp_path / "pid").write_text(str(service.pid))
        drain = subprocess.Popen(["weir-mpi-drain"], env=node)
        assert service.wait(60) == 0
        assert (tmp_path / "asked").exists()
        assert drain.wait(60) == 0
    finally:
        service.kill()


def _until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.01)


def test_every_service_has_an_image() -> None:
    assert {BUILDS[image][3] for image in BUILDS} == set(SETTINGS)
    made = re.findall(r"\$\(call IMAGE,([\w-]+),([\w-]*),([\w-]+)\)", (ROOT / "Makefile").read_text())
    assert {image: (name, target or "final") for name, target, image in made} == {
        image: (name, runs) for image, (name, runs, *_) in BUILDS.items()
    }
