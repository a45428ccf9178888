"""Where the services that `weir up` started on this machine listen: a small file that it writes and clients read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_ROUTER = "127.0.0.1:7700"


@dataclass(frozen=True, slots=True)
class RunningService:
    """One service of the local stack. `pid` is the process it lives in; several share one when placed together."""

    service: str  # "router", "tokenizer", "executor", "kvstore", "postprocess"
    address: str
    pid: int


def state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """`WEIR_STATE_DIR`, else `weir` under the user's XDG state directory."""
    if explicit := environment.get("WEIR_STATE_DIR"):
        return Path(explicit)
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "weir"


def write_stack(services: list[RunningService], directory: Path) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "stack.json.partial"
    partial.write_text(json.dumps([asdict(service) for service in services], indent=1))
    partial.replace(_file(directory))


def read_stack(directory: Path) -> list[RunningService]:
    """The services of the newest `weir up`, empty when none runs: the file of one that was killed is passed over."""
    services = _listed(directory)
    return services if any(_alive(service.pid) for service in services) else []


def clear_stack(directory: Path, router: str) -> None:
    """Remove the file of the stack with this router, and leave it when another stack has replaced it."""
    if any(service.address == router for service in _listed(directory)):
        _file(directory).unlink(missing_ok=True)


def router_address(given: str | None) -> str:
    """The router to call: as given, else that of the local stack, else the default port."""
    if given:
        return given
    routers = [s.address for s in read_stack(state_directory()) if s.service == "router"]
    return routers[0] if routers else DEFAULT_ROUTER


def executor_addresses(given: Sequence[str]) -> list[str]:
    """The executors to call: as given, else those of the local stack, which may be none."""
    return list(given) or [s.address for s in read_stack(state_directory()) if s.service == "executor"]


def kvstore_address(given: str | None) -> str | None:
    """The kvstore to call: as given, else that of the local stack, else None."""
    kvstores = [s.address for s in read_stack(state_directory()) if s.service == "kvstore"]
    return given or next(iter(kvstores), None)


def _listed(directory: Path) -> list[RunningService]:
    try:
        return [RunningService(**entry) for entry in json.loads(_file(directory).read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def _file(directory: Path) -> Path:
    return directory / "stack.json"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
