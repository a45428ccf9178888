"""What the package says to gRPC before anybody imports that."""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
import sys, weir_chassis
assert "grpc" not in sys.modules
import os, grpc
grpc.insecure_channel("127.0.0.1:1").close()
print(os.environ["GRPC_EXPERIMENTS"])
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    return subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, check=True, timeout=60, env={**kept, **variables}
    )


def test_what_it_says_is_known_to_the_grpc_that_is_installed() -> None:
    told = run(GRPC_VERBOSITY="INFO")
    assert told.stdout == "-event_engine_client,-event_engine_listener\n"
    assert "experiment" not in told.stderr.lower(), "gRPC does not know one of them"


def test_who_has_chosen_already_is_left_alone() -> None:
    assert run(GRPC_EXPERIMENTS="event_engine_client").stdout == "event_engine_client\n"
