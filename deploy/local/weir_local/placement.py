"""Which services a local stack has, where they listen and what they are told. Pure: decides, starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
HOST = "127.0.0.1"
# Beside this package in a checkout; an installed wheel has no model, and is told one.
_DEMO = Path(__file__).parents[2] / "models/demo"


# Enough to try several against one another; a service of its own is told how many it may hold.
_MAX_ADAPTERS = 8
# All services share this machine: what sending and storing a prefix takes while requests run, their steps lack. At this
# rate it is about one part in a hundred.
_BUSY_BYTES_PER_SECOND = 4e6


class PlacementError(Exception):
    """What was asked for makes no stack."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What the user asked `weir up` for."""

    model_dir: Path | None = None  # None: the demo model that the repository ships
    name: str | None = None  # None: the directory's name
    executors: int = 1
    prefill: int = 0  # executors that only compute prompts; with them come those that decode, in place of `executors`
    decode: int = 0
    disaggregate_tokens: int | None = None  # a prompt of so many is computed apart; None: the router's default
    one_process: bool = False
    dtype: str | None = None  # None: the checkpoint's
    device: str = "cpu"
    watermark_key_file: Path | None = None  # None: no watermarks
    draft_model: Path | None = None  # None: nobody guesses ahead
    kv_cache_mib: int = 512
    kv_store_mib: int = 512
    kv_redis_url: str | None = None  # None: its prefixes are this machine's own
    kv_tiers_file: Path | None = None  # of the kvstore's tiers; None: RAM of `kv_store_mib`, and Redis if there is one
    kv_trace_file: Path | None = None  # None: what the kvstore is asked is written down nowhere
    adapter_dir: Path | None = None  # None: no adapters
    routing_file: Path | None = None  # how the router routes; None: as it does without one
    nats_url: str | None = None  # None: KV events are published nowhere, and no prompt waits in a queue
    region: str = ""  # where this machine is, as its operator names it
    port: int = 7700  # of the router; 0: any free one

    @property
    def roles(self) -> list[str]:
        """One for each executor. Raises PlacementError for prefill workers that nobody would go on after."""
        if bool(self.prefill) != bool(self.decode):
            raise PlacementError("--prefill and --decode go together: each computes a part of a request")
        return ["prefill"] * self.prefill + ["decode"] * self.decode or ["both"] * self.executors


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One service: `settings` are the fields of its settings class, as text."""

    service: str
    address: str  # `host:port`, or `memory:<name>` in one process
    settings: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """The same settings as the variables that a process of its own reads."""
        return {f"WEIR_{self.service}_{name}".upper(): value for name, value in self.settings.items()}


def plan(placement: Placement, free_port: Callable[[], int]) -> list[PlannedService]:
    """The services in the order that they are shown, the router last. Raises FileNotFoundError, PlacementError."""
    model_dir, name = find_model(placement.model_dir), model_name(placement)
    place = _in_memory if placement.one_process else _on_loopback(free_port)
    models = _shared_settings(placement) | {"models": f"{name}={model_dir}"}
    kvstore = place("kvstore", _kvstore_settings(placement))
    tokenizer = place("tokenizer", models)
    postprocess = place("postprocess", models)
    executor_settings = _executor_settings(placement, model_dir, kvstore.address)
    executors = [
        place(f"executor{i or ''}", executor_settings | {"role": role}) for i, role in enumerate(placement.roles)
    ]
    fleet = _shared_settings(placement) | {
        "tokenizers": tokenizer.address,
        "postprocessors": postprocess.address,
        "executors": ",".join(executor.address for executor in executors),
    }
    if placement.disaggregate_tokens is not None:
        fleet["disaggregate_tokens"] = str(placement.disaggregate_tokens)
    if placement.routing_file is not None:
        fleet["config_file"] = str(placement.routing_file.resolve())
    router = _at("router", placement.port or free_port(), fleet)
    return [kvstore, tokenizer, postprocess, *executors, router]


Place = Callable[[str, Mapping[str, str]], PlannedService]


def _on_loopback(free_port: Callable[[], int]) -> Place:
    return lambda name, settings: _at(name.rstrip("0123456789"), free_port(), settings)


def _in_memory(name: str, settings: Mapping[str, str]) -> PlannedService:
    address = f"memory:{name}"
    # It has no port to be known by.
    return PlannedService(name.rstrip("0123456789"), address, {**settings, "advertise": address})


def _at(service: str, port: int, settings: Mapping[str, str]) -> PlannedService:
    return PlannedService(service, f"{HOST}:{port}", {"host": HOST, "port": str(port), **settings})


def model_name(placement: Placement) -> str:
    return placement.name or find_model(placement.model_dir).name


def find_model(model_dir: Path | None) -> Path:
    """The absolute directory of the model. Raises FileNotFoundError naming what is not there."""
    directory = (model_dir or _DEMO).expanduser().resolve()
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} is no Hugging Face model directory (no config.json); name one with --model"
        )
    return directory


def _kvstore_settings(placement: Placement) -> dict[str, str]:
    settings = _tier_settings(placement)
    if placement.kv_trace_file:
        settings["trace_file"] = str(placement.kv_trace_file.resolve())
    return settings | _shared_settings(placement)


def _tier_settings(placement: Placement) -> dict[str, str]:
    if placement.kv_tiers_file and placement.kv_redis_url:
        raise PlacementError("--kv-tiers says which tiers there are: name the Redis there, and not with --kv-redis")
    if placement.kv_tiers_file:
        return {"tiers_file": str(placement.kv_tiers_file.resolve())}
    capacity = placement.kv_store_mib * MIB
    settings = {"capacity_bytes": str(capacity), "max_staged_bytes": str(capacity // 4)}
    return settings | ({"redis_url": placement.kv_redis_url} if placement.kv_redis_url else {})


def _shared_settings(placement: Placement) -> dict[str, str]:
    """What all services are told alike."""
    told = {"nats_url": placement.nats_url, "region": placement.region}
    return {name: value for name, value in told.items() if value}


def _executor_settings(placement: Placement, model_dir: Path, kvstore: str) -> dict[str, str]:
    settings = {
        "model": model_name(placement),
        "model_dir": str(model_dir),
        "device": placement.device,
        "kv_cache_bytes": str(placement.kv_cache_mib * MIB),
        "kvstore_address": kvstore,
        "kvstore_busy_bytes_per_second": str(_BUSY_BYTES_PER_SECOND),
    }
    settings |= _shared_settings(placement)
    if placement.dtype:
        settings["dtype"] = placement.dtype
    if placement.adapter_dir:
        settings["adapter_dir"] = str(placement.adapter_dir.expanduser().resolve())
        settings["max_adapters"] = str(_MAX_ADAPTERS)
    if placement.watermark_key_file is not None:
        settings["watermark_key_file"] = str(placement.watermark_key_file.resolve())
    if placement.draft_model:
        settings |= {"draft_model_dir": str(find_model(placement.draft_model)), "speculation": "draft_model"}
    return settings
