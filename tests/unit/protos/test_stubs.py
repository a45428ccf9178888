"""The committed stubs load on every protobuf runtime that we allow: it takes code that is no newer than itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[3] / "protos"
OLDEST_RUNTIME = (6, 33, 5)  # TensorRT-LLM pins protobuf >=6.33.5,<7


def test_no_stub_is_newer_than_the_oldest_runtime() -> None:
    stubs = sorted(PROTOS.rglob("*_pb2.py"))
    assert len(stubs) >= 11
    for stub in stubs:
        version = re.search(
            r"ValidateProtobufRuntimeVersion\(\s*\S+PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+)", stub.read_text()
        )
        assert version, stub
        assert tuple(map(int, version.groups())) <= OLDEST_RUNTIME, stub


def test_every_stub_loads_without_a_warning() -> None:
    names = [".".join(p.relative_to(PROTOS).with_suffix("").parts) for p in PROTOS.rglob("*_pb2*.py")]
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_stub_is_typed() -> None:
    """A stub without its `.pyi` would be `Any` to every caller."""
    for stub in PROTOS.rglob("*_pb2*.py"):
        assert stub.with_suffix(".pyi").is_file(), stub
