"""Which services a local stack has, where they listen and what they are told. Pure: decides, starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
HOST = "127.0.0.1"
_PACKAGED = Path(__file__).parent / "models/demo"
_CHECKOUT = Path(__file__).parents[2] / "models/demo"


@dataclass(frozen=True, slots=True)
class Placement:
    """What the user asked `weir up` for."""

    model_dir: Path | None = None  # None: the demo model that the repository ships
    name: str | None = None  # None: the directory's name
    executors: int = 1
    one_process: bool = False
    dtype: str | None = None  # None: the checkpoint's
    device: str = "cpu"
    kv_cache_mib: int = 512
    kv_store_mib: int = 512
    port: int = 7700  # of the router; 0: any free one


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One service: `settings` are the fields of its settings class, as text."""

    service: str
    port: int
    settings: Mapping[str, str]

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """The same settings as the variables that a process of its own reads."""
        return {f"WEIR_{self.service}_{name}".upper(): value for name, value in self.settings.items()}


def plan(placement: Placement, free_port: Callable[[], int]) -> list[PlannedService]:
    """The services in the order that they are shown, the router last. Raises FileNotFoundError for a missing model."""
    model_dir = find_model(placement.model_dir)
    models = {"models": f"{model_name(placement)}={model_dir}"}
    kvstore = _service("kvstore", free_port(), capacity_bytes=str(placement.kv_store_mib * MIB))
    tokenizer = _service("tokenizer", free_port(), **models)
    postprocess = _service("postprocess", free_port(), **models)
    executors = [
        _service("executor", free_port(), **_executor_settings(placement, model_dir, kvstore.address))
        for _ in range(placement.executors)
    ]
    router = _service(
        "router",
        placement.port or free_port(),
        tokenizers=tokenizer.address,
        postprocessors=postprocess.address,
        executors=",".join(executor.address for executor in executors),
    )
    return [kvstore, tokenizer, postprocess, *executors, router]


def model_name(placement: Placement) -> str:
    return placement.name or find_model(placement.model_dir).name


def find_model(model_dir: Path | None) -> Path:
    """The absolute directory of the model. Raises FileNotFoundError naming what is not there."""
    directory = (model_dir or (_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT)).expanduser().resolve()
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is no Hugging Face model directory: it has no config.json")
    return directory


def _executor_settings(placement: Placement, model_dir: Path, kvstore: str) -> dict[str, str]:
    settings = {
        "model": model_name(placement),
        "model_dir": str(model_dir),
        "device": placement.device,
        "kv_cache_bytes": str(placement.kv_cache_mib * MIB),
        "kvstore_address": kvstore if placement.kv_store_mib else "",
    }
    if placement.dtype:
        settings["dtype"] = placement.dtype
    return settings


def _service(service: str, port: int, **settings: str) -> PlannedService:
    return PlannedService(service, port, {"host": HOST, "port": str(port), **settings})
