"""What a service may import is what its extra installs: dependencies of one service never load in another."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ["tokenizer", "executor", "kvstore", "postprocess", "router"]
# Where a distribution's import name is not its own.
IMPORT_NAMES = {
    "grpcio": {"grpc"},
    "grpcio-health-checking": {"grpc_health"},
    "grpcio-reflection": {"grpc_reflection"},
    "grpcio-status": {"grpc_status"},
    "nats-py": {"nats"},
    "prometheus-client": {"prometheus_client"},
    "protobuf": {"google"},
    "pydantic-settings": {"pydantic_settings", "pydantic"},
    "torch": {"torch", "triton"},  # its CUDA builds bring triton, and only code for CUDA devices imports it
}
HEAVY = {"torch", "triton", "transformers", "tokenizers", "jinja2", "numpy", "safetensors", "xxhash", "click", "nats"}


def distributions(extra: str) -> set[str]:
    """Import names that the base dependencies and one extra allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"][extra]
    names = {re.split(r"[<>=;\s]", requirement)[0] for requirement in requirements}
    return set().union(*(IMPORT_NAMES.get(name, {name}) for name in names))


def third_party_imports(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            found |= {module.split(".")[0]: path for module in modules}
    ours = {"weir", "weir_chassis", *(f"weir_{service}" for service in SERVICES)}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | ours}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_what_its_extra_installs(service: str) -> None:
    # The chassis imports these where a NATS_URL or a REDIS_URL is set.
    allowed = distributions(service) | distributions("nats") | distributions("redis")
    for folder in (ROOT / f"services/{service}", ROOT / "services/chassis"):
        strangers = {name: path for name, path in third_party_imports(folder).items() if name not in allowed}
        assert not strangers, strangers


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_loads_nothing_of_another(service: str) -> None:
    code = f"import weir_{service}.service, sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    others = {f"weir_{other}" for other in SERVICES if other != service}
    assert not loaded & others
    assert not loaded & HEAVY - distributions(service)


@pytest.mark.parametrize("service", ["kvstore", "router"])
def test_a_service_loads_a_redis_client_only_where_it_is_told_of_a_redis(service: str) -> None:
    """Whoever has no Redis can do without its client."""
    code = f"import weir_{service}.service, sys; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
