"""Adapters from the command line, on real processes with the demo model."""

from __future__ import annotations

import time
from pathlib import Path

from adapters_fixture import save_adapter
from e2e.conftest import json_lines, start_stack
from weir_local.placement import find_model


def test_an_adapter_is_loaded_used_and_unloaded_from_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    save_adapter(folder / "poet", find_model(None), strength=0.05)
    stack = start_stack(tmp_path / "stack", "--adapter-dir", str(folder))
    try:
        ask = ("generate", "Once upon a time", "--temperature", "0", "--max-tokens", "12")
        plain = stack.weir(*ask)
        assert plain.returncode == 0, plain.stderr
        unknown = stack.weir(*ask, "--adapter", "poet")
        assert (unknown.returncode, unknown.stderr.split(":")[0]) == (1, "NOT_FOUND")
        outside = stack.weir("adapters", "load", "poet", "../stack")
        assert (outside.returncode, outside.stderr.split(":")[0]) == (1, "INVALID_ARGUMENT")
        loaded = stack.weir("adapters", "load", "poet", "poet")
        assert loaded.returncode == 0, loaded.stderr
        assert "poet  rank 4" in loaded.stdout
        (listed,) = json_lines(stack.weir("adapters", "list", "--json").stdout)
        assert listed["name"] == "poet"
        deadline = time.monotonic() + 20
        while (answered := stack.weir(*ask, "--adapter", "poet")).returncode and time.monotonic() < deadline:
            time.sleep(0.2)  # the router asks executors for their adapters once a second
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout != plain.stdout
        assert stack.weir(*ask).stdout == plain.stdout
        assert "unloaded" in stack.weir("adapters", "unload", "poet").stdout
        assert not stack.weir("adapters", "list").stdout
    finally:
        assert stack.stop() == 0
