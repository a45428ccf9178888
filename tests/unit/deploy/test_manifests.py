"""The Kubernetes manifests: sound by Kubernetes' own schemas, and of one mind with the services that they start."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from importlib import import_module
from typing import Any

import kubernetes_validate
import pytest
import yaml

from unit.deploy.dockerfile import read
from unit.deploy.test_compose import engine_end_seconds
from unit.deploy.test_images import BUILDS, IMAGES
from unit.deploy.what_is_deployed import DEPLOY, MPI_VARIABLES, PORTS, SETTINGS, VARIABLES, VERSION, read_yaml, size
from weir_chassis.settings import ServiceSettings, load_settings
from weir_local.processes import START_SECONDS
from weir_router.settings import RouterSettings

KUBERNETES = DEPLOY / "kubernetes"
# The oldest that is meant: probes by gRPC, and a preStop that sleeps, are there without a switch.
RELEASE = "1.34"
OVERLAYS = ["base", "gpu", "multi-node"]
Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Manifest]:
    """By kubectl, as an operator would. Without it the base is its files: kubectl gives them no more than tags."""
    if shutil.which("kubectl") is None:
        if overlay == "base":
            return files()
        pytest.skip("no kubectl: `make deploy-check` on a machine that has one")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def files() -> list[Manifest]:
    """Of the base, as they are written."""
    return [each for path in sorted((KUBERNETES / "base").glob("*.yaml")) for each in read_yaml(path)]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Templates of pods, by the name of what makes them."""
    found = {
        each["metadata"]["name"]: each["spec"]["template"] for each in of_kind(manifests, "Deployment", "StatefulSet")
    }
    for group in of_kind(manifests, "LeaderWorkerSet"):
        template = group["spec"]["leaderWorkerTemplate"]
        found["weir-executor-leader"], found["weir-executor-worker"] = (
            template["leaderTemplate"],
            template["workerTemplate"],
        )
    return found


def service_of(image: str) -> str | None:
    """Of one of our images: `weir/executor-trtllm:0.1.0` is an executor's."""
    name = image.partition(":")[0].removeprefix("weir/")
    return BUILDS[name][3] if name in BUILDS else None


def serving(manifests: list[Manifest]) -> dict[str, tuple[str, Manifest, Manifest]]:
    """Container → service, its pod's template, itself; of those that run one of our services."""
    found = {}
    for name, pod in pods(manifests).items():
        (container,) = pod["spec"]["containers"]
        service = service_of(container["image"])
        if service is not None and name != "weir-executor-worker":
            found[name] = (service, pod, container)
    return found


def settings(container: Manifest, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """As the service in its container reads them, in a pod at 10.0.0.1."""
    for name in [name for name in os.environ if name.startswith("WEIR_")]:
        monkeypatch.delenv(name)
    image = container["image"].partition(":")[0].removeprefix("weir/")
    dockerfile, runs, _, service, _ = BUILDS[image]
    environment = read(IMAGES / f"{dockerfile}.Dockerfile").whole(runs).environment()
    environment |= {each["name"]: each["value"] for each in container["env"] if "value" in each}
    for name, value in environment.items():
        if name.startswith("WEIR_"):
            monkeypatch.setenv(name, value.replace("$(POD_IP)", "10.0.0.1"))
    return load_settings(SETTINGS[service])


# ── what Kubernetes says ──────────────────────────────────────────────────────────────────────────────────────────────


def check(manifest: Manifest) -> None:
    if manifest["kind"] == "Kustomization":
        return
    if manifest["kind"] == "LeaderWorkerSet":  # another project's kind; what it holds is Kubernetes' own
        for name in ("leaderTemplate", "workerTemplate"):
            template = manifest["spec"]["leaderWorkerTemplate"][name]
            check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template})
        return
    kubernetes_validate.validate(manifest, RELEASE, strict=True)


def test_the_files_are_sound() -> None:
    manifests = files()
    for manifest in [*manifests, *read_yaml(KUBERNETES / "multi-node/executor-group.yaml")]:
        check(manifest)
    assert len(manifests) > 20


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_rendered_is_sound(overlay: str) -> None:
    for manifest in rendered(overlay):
        check(manifest)


def test_a_misspelt_field_is_seen() -> None:
    (first, *_) = of_kind(files(), "Deployment")
    first["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        check(first)


# ── what the services say ─────────────────────────────────────────────────────────────────────────────────────────────


def test_all_five_are_in_the_base_with_nats_and_redis() -> None:
    assert pods(files()).keys() == {f"weir-{name}" for name in (*SETTINGS, "nats", "redis")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_service_is_told_are_settings_of_its(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for service, _, container in serving(rendered(overlay)).values():
        names = [each["name"] for each in container["env"]]
        assert len(set(names)) == len(names)
        assert names.index("POD_IP") < names.index(f"WEIR_{service.upper()}_ADVERTISE"), (
            "a name is known once it is given"
        )
        ours = {name for name in names if name.startswith("WEIR_")} - MPI_VARIABLES
        assert {VARIABLES[name] for name in ours} == {service}
        found = settings(container, monkeypatch)
        assert found.port == PORTS[service]
        assert found.advertise == f"10.0.0.1:{PORTS[service]}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_the_services_own(overlay: str) -> None:
    manifests = rendered(overlay)
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "Service")}
    for service, pod, container in serving(manifests).values():
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["grpc"] == PORTS[service]
        assert ports["metrics"] == PORTS[service] + 2000
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
        offered = services[f"weir-{service}"]
        assert [(each["port"], each["targetPort"]) for each in offered["ports"]] == [(PORTS[service], "grpc")]
        if service == "router":
            assert "clusterIP" not in offered
        else:
            assert offered["clusterIP"] == "None", "a name that resolves to each pod"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_addresses_lead_to_services(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered(overlay)
    known = {
        f"{each['metadata']['name']}:{port['port']}"
        for each in of_kind(manifests, "Service")
        for port in each["spec"]["ports"]
    }
    for _, _, container in serving(manifests).values():
        for each in container["env"]:
            value = each.get("value", "")
            if each["name"].endswith(("_URL", "_ADDRESS", "TOKENIZERS", "POSTPROCESSORS", "_EXECUTORS")):
                assert value.rpartition("//")[2].partition("/")[0] in known, each
    router = settings(serving(manifests)["weir-router"][2], monkeypatch)
    assert isinstance(router, RouterSettings)
    assert router.executors == (f"dns:///weir-executor:{PORTS['executor']}",)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_what_they_name(overlay: str) -> None:
    manifests = rendered(overlay)
    labels = [pod["metadata"]["labels"] for pod in pods(manifests).values()]
    for each in of_kind(manifests, "Deployment", "StatefulSet"):
        assert each["spec"]["selector"]["matchLabels"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
    chosen = [each["spec"]["selector"] for each in of_kind(manifests, "Service")]
    chosen += [each["spec"]["selector"]["matchLabels"] for each in of_kind(manifests, "PodDisruptionBudget")]
    chosen += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(manifests, "NetworkPolicy")]
    for selector in chosen:
        own = {name: value for name, value in selector.items() if not name.startswith("leaderworkerset")}
        assert any(own.items() <= each.items() for each in labels), selector
    assert all(each["app.kubernetes.io/part-of"] == "weir" for each in labels), "else no policy protects it"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_may_be_disrupted_and_never_wholly(overlay: str) -> None:
    manifests = rendered(overlay)
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "PodDisruptionBudget")}
    assert budgets.keys() == {f"weir-{service}" for service in SETTINGS}
    for each in of_kind(manifests, "Deployment"):
        budget = budgets[each["metadata"]["name"]]
        assert budget.get("maxUnavailable") == 1 or budget["minAvailable"] < each["spec"]["replicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_know_of_health_and_not_of_load(overlay: str) -> None:
    for service, _, container in serving(rendered(overlay)).values():
        live, ready = container["livenessProbe"], container["readinessProbe"]
        # The process, for its life; its service by name, for its work: `weir_chassis.health` knows both.
        assert live["grpc"] == {"port": PORTS[service]}
        contract = import_module(f"weir.{service}.v1.{service}_pb2").DESCRIPTOR.services_by_name
        assert ready["grpc"]["service"] in {each.full_name for each in contract.values()}
        assert live["periodSeconds"] * live["failureThreshold"] >= 60, "a busy minute is nobody's end"
        assert ready["periodSeconds"] * ready["failureThreshold"] <= 10
        assert live["timeoutSeconds"] <= live["periodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_start_may_take_what_it_takes(overlay: str) -> None:
    for service, _, container in serving(rendered(overlay)).values():
        probe = container["startupProbe"]
        budget = probe["periodSeconds"] * probe["failureThreshold"]
        if "trtllm" in container["image"]:
            wanted = float(
                RouterSettings.model_fields["operation_seconds"].default
            )  # the largest models', from a slow disk
        else:
            wanted = START_SECONDS if service == "executor" else 60.0
        assert budget >= wanted, service


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_time_to_drain(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (_, pod, container) in serving(rendered(overlay)).items():
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        before = container["lifecycle"]["preStop"].get("sleep", {"seconds": 0})["seconds"]
        end = engine_end_seconds() if "trtllm" in container["image"] else 5.0
        assert grace >= before + settings(container, monkeypatch).drain_seconds + end, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_nobodys_root_and_what_they_mount_is_there(overlay: str) -> None:
    manifests = rendered(overlay)
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    templates = {
        template["metadata"]["name"]
        for each in of_kind(manifests, "StatefulSet")
        for template in each["spec"].get("volumeClaimTemplates", ())
    }
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        if "trtllm" not in container["image"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        volumes = {each["name"] for each in spec.get("volumes", ())} | templates
        assert {each["name"] for each in container["volumeMounts"]} <= volumes, name
        for volume in spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_ours_by_version(overlay: str) -> None:
    for service, _, container in serving(rendered(overlay)).values():
        name, _, tag = container["image"].partition(":")
        assert tag == VERSION
        assert name.removeprefix("weir/") in BUILDS, service
    (executor,) = {each["image"] for service, _, each in serving(rendered(overlay)).values() if service == "executor"}
    assert executor == f"weir/{'executor' if overlay == 'base' else 'executor-trtllm'}:{VERSION}"


def test_there_is_room_for_what_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kvstore = settings(pods(rendered("base"))["weir-kvstore"]["spec"]["containers"][0], monkeypatch)
    (stateful,) = [
        each for each in of_kind(rendered("base"), "StatefulSet") if each["metadata"]["name"] == "weir-kvstore"
    ]
    (disk,) = stateful["spec"]["volumeClaimTemplates"]
    told = kvstore.model_dump()
    assert size(disk["spec"]["resources"]["requests"]["storage"]) > 1.2 * told["disk_bytes"]
    limits = stateful["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert size(limits["memory"]) > 1.3 * told["capacity_bytes"]
    redis = pods(rendered("base"))["weir-redis"]["spec"]["containers"][0]
    most = size(redis["args"][redis["args"].index("--maxmemory") + 1])
    assert 2 * told["redis_bytes"] <= most < size(redis["resources"]["limits"]["memory"])


# ── GPUs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def gpus(container: Manifest) -> int:
    assert container["resources"]["requests"]["nvidia.com/gpu"] == container["resources"]["limits"]["nvidia.com/gpu"]
    return int(container["resources"]["limits"]["nvidia.com/gpu"])


def shared_memory(pod: Manifest) -> int:
    (container,) = pod["spec"]["containers"]
    (mount,) = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
    (volume,) = [each["emptyDir"] for each in pod["spec"]["volumes"] if each["name"] == mount]
    assert volume["medium"] == "Memory"
    return size(volume["sizeLimit"])


def test_one_node_has_as_many_gpus_as_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = pods(rendered("gpu"))["weir-executor"]
    (container,) = pod["spec"]["containers"]
    told = settings(container, monkeypatch).model_dump()
    assert told["engine"] == "trtllm"
    assert told["tensor_parallel"] * told["pipeline_parallel"] == gpus(container)
    assert 1 << 30 <= shared_memory(pod) < size(container["resources"]["limits"]["memory"])
    (deployment,) = [
        each for each in of_kind(rendered("gpu"), "Deployment") if each["metadata"]["name"] == "weir-executor"
    ]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}, "no GPU is to spare"


def test_a_group_has_as_many_gpus_as_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered("multi-node")
    (group,) = of_kind(manifests, "LeaderWorkerSet")
    both = pods(manifests)
    leader, worker = both["weir-executor-leader"], both["weir-executor-worker"]
    (serves,), (ranks,) = leader["spec"]["containers"], worker["spec"]["containers"]
    told = settings(serves, monkeypatch).model_dump()
    per_node = gpus(serves)
    assert per_node == gpus(ranks) == told["trtllm_gpus_per_node"]
    variables = {each["name"]: each.get("value") for each in serves["env"]}
    assert variables["WEIR_MPI_GPUS_PER_NODE"] == str(per_node)
    size_of_group = group["spec"]["leaderWorkerTemplate"]["size"]
    assert told["tensor_parallel"] * told["pipeline_parallel"] == size_of_group * per_node
    assert min(shared_memory(leader), shared_memory(worker)) >= 1 << 30
    assert serves["image"] == ranks["image"]
    for container in (serves, ranks):
        (command,) = container["command"]
        assert (IMAGES / "mpi" / command).exists()
    assert (IMAGES / "mpi" / serves["lifecycle"]["preStop"]["exec"]["command"][0]).exists()


def test_a_group_ends_together_and_its_workers_last(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered("multi-node")
    (group,) = of_kind(manifests, "LeaderWorkerSet")
    assert group["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    both = pods(manifests)
    (serves,), (ranks,) = (both[f"weir-executor-{each}"]["spec"]["containers"] for each in ("leader", "worker"))
    drained = settings(serves, monkeypatch).drain_seconds + engine_end_seconds()
    assert ranks["lifecycle"]["preStop"]["sleep"]["seconds"] >= drained
    names = {each["metadata"]["name"] for each in of_kind(manifests, "Service")}
    assert group["metadata"]["name"] not in names, "LeaderWorkerSet makes a service of its own name"
    (service,) = [each for each in of_kind(manifests, "Service") if each["metadata"]["name"] == "weir-executor"]
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert "weir-executor" not in {each["metadata"]["name"] for each in of_kind(manifests, "Deployment")}
