"""A GPU's image may hold torch, triton, transformers, tokenizers and grpcio, and little else.

The bare engine raises our errors and never sends one, so what turns them into a gRPC status may be missing there.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

_ONLY_TO_SEND_ERRORS = {
    "grpc_status": ("rpc_status",),
    "google.rpc": ("code_pb2", "error_details_pb2", "status_pb2"),
}


def complete() -> None:
    """Put an empty module where one of those is missing."""
    for package, modules in _ONLY_TO_SEND_ERRORS.items():
        if _is_missing(package):
            stand_in = sys.modules[package] = ModuleType(package)
            for name in modules:
                setattr(stand_in, name, ModuleType(name))


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:
        return True
