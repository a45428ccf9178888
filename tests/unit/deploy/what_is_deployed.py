"""What compose files, manifests and Dockerfiles must agree with: the services' own settings, ports and clocks."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weir_chassis.settings import ServiceSettings, variable_names
from weir_executor.settings import ExecutorSettings
from weir_kvstore.settings import KvStoreSettings
from weir_postprocess.settings import PostprocessSettings
from weir_router.settings import RouterSettings
from weir_tokenizer.settings import TokenizerSettings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SETTINGS: Mapping[str, type[ServiceSettings]] = {
    "router": RouterSettings,
    "tokenizer": TokenizerSettings,
    "executor": ExecutorSettings,
    "kvstore": KvStoreSettings,
    "postprocess": PostprocessSettings,
}
# As the README has them; metrics are 2000 above.
PORTS = {
    service.lower(): int(port)
    for service, port in re.findall(r"WEIR_(\w+?)_PORT=(\d+) ", (ROOT / "README.md").read_text())
}
# Every variable that any service reads.
VARIABLES = {name: service for service, settings in SETTINGS.items() for name in variable_names(settings)}
# Of deploy/images/mpi.
MPI_VARIABLES = {"WEIR_MPI_GPUS_PER_NODE", "WEIR_MPI_KEYS", "WEIR_MPI_PID_FILE"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read_yaml(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def seconds(text: str) -> float:
    """Of `45s`, `5m`."""
    number, unit = re.fullmatch(r"(\d+)([smh])", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def size(text: str) -> int:
    """Of `1200m`, `1gb`, `6Gi`, `16gb`; both kinds of unit are powers of 1024 to their readers."""
    number, unit = re.fullmatch(r"(\d+)([kmgKMG])(?:i|b)?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit.lower()]
