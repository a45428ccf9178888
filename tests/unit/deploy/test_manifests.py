"""The Kubernetes manifests: sound by Kubernetes' own schemas, and of one mind with the services that they start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from unit.deploy.dockerfile import read
from unit.deploy.test_compose import engine_end_seconds, largest_start_seconds
from unit.deploy.test_images import BUILDS, IMAGES
from unit.deploy.what_is_deployed import DEPLOY, MPI_VARIABLES, PORTS, SETTINGS, VARIABLES, VERSION, read_yaml, size
from weir_chassis.settings import ServiceSettings, load_settings
from weir_local.processes import START_SECONDS
from weir_router.routing_config import parse
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
    environment |= given(container)
    for name, value in environment.items():
        if name.startswith("WEIR_"):
            monkeypatch.setenv(name, value.replace("/etc/weir/", f"{KUBERNETES}/base/"))  # where it comes from
    return load_settings(SETTINGS[service])


def given(container: Manifest) -> dict[str, str]:
    """The variables of a container as Kubernetes makes them, in a pod at 10.0.0.1; a secret says its key's name."""
    found: dict[str, str] = {}
    for each in container.get("env", ()):
        match each.get("valueFrom", {}):
            case {"fieldRef": {"fieldPath": "status.podIP"}}:
                value = "10.0.0.1"
            case {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}}:
                value = container["resources"]["requests"]["cpu"]
            case {"secretKeyRef": {"name": "weir-secrets", "key": key}}:
                value = key
            case _:
                value = each["value"]
        assert each["name"] not in found
        found[each["name"]] = expanded(value, found)
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
    """With `$(NAME)` of those that are given before."""
    return re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], text)


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
        ours = {name for name in given(container) if name.startswith("WEIR_")} - MPI_VARIABLES
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
                assert value.rpartition("//")[2].rpartition("@")[2].partition("/")[0] in known, each
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
        assert probe["grpc"] == {"port": PORTS[service]}
        budget = probe["periodSeconds"] * probe["failureThreshold"]
        slowest = START_SECONDS if service == "executor" else 60.0
        wanted = largest_start_seconds() if "trtllm" in container["image"] else slowest
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
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        volumes = {each["name"] for each in spec.get("volumes", ())} | templates
        assert {each["name"] for each in container["volumeMounts"]} <= volumes, name
        for volume in spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_speaks_to_nats_or_redis_knows_its_secret(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered(overlay)
    (nats,), (redis,) = (pods(manifests)[name]["spec"]["containers"] for name in ("weir-nats", "weir-redis"))
    assert ("--auth", "nats-token") in pairwise(expanded(each, given(nats)) for each in nats["args"])
    assert ("--requirepass", "redis-password") in pairwise(expanded(each, given(redis)) for each in redis["args"])
    assert given(redis)["REDISCLI_AUTH"] == "redis-password", "else its probe is refused"
    told = {service: settings(container, monkeypatch) for service, _, container in serving(manifests).values()}
    for service, found in told.items():
        assert found.nats_token.get_secret_value() == "nats-token", service
    urls = [told[name].model_dump()["redis_url"].get_secret_value() for name in ("router", "kvstore")]
    assert urls == ["redis://:redis-password@weir-redis:6379/0", "redis://:redis-password@weir-redis:6379/1"]
    (made,) = re.findall(
        r"create secret generic weir-secrets (.*?)\n```", (DEPLOY / "README.md").read_text(), re.DOTALL
    )
    assert set(re.findall(r"--from-literal=([\w-]+)=", made)) == {"nats-token", "redis-password"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_that_opens_a_door_is_written_down(overlay: str) -> None:
    assert not of_kind(rendered(overlay), "Secret")
    for pod in pods(rendered(overlay)).values():
        (container,) = pod["spec"]["containers"]
        for each in container.get("env", ()):
            assert "value" not in each or not re.search("PASSWORD|TOKEN$|AUTH$|SECRET", each["name"]), each["name"]
            user, at, _ = each.get("value", "").rpartition("@")
            assert not at or user.endswith("$(REDIS_PASSWORD)"), each["name"]
        for option, value in pairwise(container.get("args", ())):
            assert option not in ("--auth", "--requirepass") or value.startswith("$("), option


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_router_follows_a_file_that_says_how(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse((KUBERNETES / "base/router.toml").read_text())
    assert config.defaults.policy == "prefix_aware"
    _, pod, container = serving(rendered(overlay))["weir-router"]
    told = Path(given(container)["WEIR_ROUTER_CONFIG_FILE"])
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert "subPath" not in mounts[str(told.parent)], "such a mount is not brought up to date"
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == mounts[str(told.parent)]["name"]]
    (generator,) = read_yaml(KUBERNETES / "base/kustomization.yaml")[0]["configMapGenerator"]
    assert volume["configMap"]["name"] == generator["name"]
    assert generator["files"] == [told.name]
    assert generator["options"] == {"disableNameSuffixHash": True}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_executor_has_as_many_threads_as_cores(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for service, _, container in serving(rendered(overlay)).values():
        if service == "executor" and "trtllm" not in container["image"]:
            told = settings(container, monkeypatch).model_dump()
            assert str(told["num_threads"]) == container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ranks_have_memory_to_speak_through(overlay: str) -> None:
    for name, pod in pods(rendered(overlay)).items():
        if name.startswith("weir-executor"):
            (container,) = pod["spec"]["containers"]
            assert 1 << 30 <= shared_memory(pod) < size(container["resources"]["limits"]["memory"]), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_service_reads_or_writes_is_mounted(overlay: str) -> None:
    for name, (_, _, container) in serving(rendered(overlay)).items():
        mounts = [each["mountPath"] for each in container["volumeMounts"]]
        named = [path for value in given(container).values() for path in re.findall(r"(?:^|=)(/[\w./-]+)", value)]
        assert named or name == "weir-kvstore"
        for path in named:
            assert any(path.startswith(f"{mount}/") for mount in mounts), f"{name}: {path}"


def test_the_base_is_all_that_lies_there() -> None:
    (kustomization,) = read_yaml(KUBERNETES / "base/kustomization.yaml")
    written = {path.name for path in (KUBERNETES / "base").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == written


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_outsiders_reach_the_router_and_metrics_alone(overlay: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered(overlay), "NetworkPolicy")}
    ours = {"matchLabels": {"app.kubernetes.io/part-of": "weir"}}
    among, metrics = policies["weir"]["ingress"]
    assert policies["weir"]["podSelector"] == ours
    assert among == {"from": [{"podSelector": ours}]}
    (ports,) = metrics["ports"]
    assert (ports["port"], ports["endPort"]) == (min(PORTS.values()) + 2000, max(PORTS.values()) + 2000)
    assert policies["weir-router"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "weir-router"}
    assert policies["weir-router"]["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": PORTS["router"]}]}]
    assert all(each["policyTypes"] == ["Ingress"] for each in policies.values())


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
    assert serves["image"] == ranks["image"]
    commands = [serves["command"], ranks["command"], serves["lifecycle"]["preStop"]["exec"]["command"]]
    assert commands == [["weir-mpi-leader"], ["weir-mpi-worker"], ["weir-mpi-drain"]]
    for container in (serves, ranks):
        assert "/etc/weir/mpi" in {each["mountPath"] for each in container["volumeMounts"]}, (
            "where its keys are looked for"
        )


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
