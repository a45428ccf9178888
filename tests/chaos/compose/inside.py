"""Run in a container by its own Python: what its image holds, and what its process may do. Prints JSON."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

_SERVICES = ("weir_tokenizer", "weir_executor", "weir_kvstore", "weir_postprocess", "weir_router", "weir_client")
_TOOLS = ("pip", "gcc", "g++", "make", "git")


def look() -> dict[str, object]:
    return {
        "user": os.getuid(),
        "services": [name for name in _SERVICES if find_spec(name)],
        "distributions": sorted({each.name.lower().replace("_", "-") for each in distributions()}),
        "tools": [name for name in _TOOLS if shutil.which(name)],
        "writable": [folder for folder in ("/", "/opt/weir", "/etc", "/tmp") if _may_write(Path(folder))],
        "capabilities": _capabilities(),
    }


def _may_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _capabilities() -> int:
    """The set that the process may ever have, a bit each."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (bounding,) = [line.split()[1] for line in lines if line.startswith("CapBnd:")]
    return int(bounding, 16)


if __name__ == "__main__":
    print(json.dumps(look()))
