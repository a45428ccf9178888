"""An adapter's directory on disk: its configuration, and its weights as the bytes of which the fingerprint is.

The weights are read once and whole. What is hashed is what is loaded, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from weir_chassis.errors import InvalidArgument
from weir_executor.adapters.config import CONFIG_FILE, AdapterConfig, parse_adapter_config

WEIGHTS_FILE = "adapter_model.safetensors"
# A configuration is about a kilobyte.
_MAX_CONFIG_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20

# Told how many of how many bytes have been read; what it raises ends the reading.
Note = Callable[[int, int], None]


def read_config(directory: Path, max_rank: int) -> AdapterConfig:
    """Raises InvalidArgument naming the file, Unsupported naming the field."""
    path = directory / CONFIG_FILE
    data = _open_checked(path, _MAX_CONFIG_BYTES, lambda _, __: None)
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise InvalidArgument("directory", f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidArgument("directory", f"{path}: not a JSON object")
    return parse_adapter_config(raw, max_rank)


def read_weights(directory: Path, max_bytes: int, note: Note) -> tuple[bytes, str]:
    """The weight file's bytes, and the fingerprint of both files: 32 hex characters. Raises InvalidArgument."""
    config = _open_checked(directory / CONFIG_FILE, _MAX_CONFIG_BYTES, lambda _, __: None)
    weights = _open_checked(directory / WEIGHTS_FILE, max_bytes, note)
    digest = blake2b(digest_size=16, person=b"weir.adapter.v1")
    for part in (config, weights):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return weights, digest.hexdigest()


def _open_checked(path: Path, max_bytes: int, note: Note) -> bytes:
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            if total > max_bytes:
                raise InvalidArgument("directory", f"{path}: {total} bytes; an adapter here has at most {max_bytes}")
            data = bytearray()
            while piece := file.read(_PIECE_BYTES):
                data += piece
                note(min(len(data), total), total)
                if len(data) > max_bytes:  # it grows while it is read
                    raise InvalidArgument("directory", f"{path}: more than {max_bytes} bytes")
            return bytes(data)
    except FileNotFoundError as error:
        raise InvalidArgument("directory", f"{path}: there is no such file") from error
    except OSError as error:
        raise InvalidArgument("directory", f"{path}: {error.strerror}") from error
