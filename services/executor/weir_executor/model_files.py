"""What a model directory says besides its weights: its version, and how its makers would draw from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.model_revision import model_revision, tokenizer_hash
from weir_chassis.errors import InvalidArgument
from weir_chassis.settings import SettingsError
from weir_executor.request import Sampling
from weir_executor.sampling_mapping import check_sampling_value
from weir_executor.settings import ExecutorSettings

_NEEDED = ("config.json", "tokenizer.json")
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    version: ModelVersion
    default_sampling: Sampling
    config: Mapping[str, Any]  # config.json


def read_model_files(settings: ExecutorSettings) -> ModelFiles:
    """Reads megabytes: not for the event loop. Raises SettingsError naming the file that is missing or wrong."""
    directory = settings.model_dir
    for name in _NEEDED:
        if not (directory / name).is_file():
            raise bad_model(settings, f"{name} is missing")
    try:
        version = ModelVersion(
            model=settings.model,
            revision=settings.revision or model_revision(directory),
            tokenizer_hash=tokenizer_hash(directory),
        )
        return ModelFiles(version, _default_sampling(directory), _read_json(directory / "config.json"))
    except (OSError, ValueError) as error:
        raise bad_model(settings, str(error)) from error


def bad_model(settings: ExecutorSettings, problem: str) -> SettingsError:
    return SettingsError(f"WEIR_EXECUTOR_MODEL_DIR={str(settings.model_dir)!r}: {problem}")


def _default_sampling(directory: Path) -> Sampling:
    """`generation_config.json` counts when it says `do_sample`; else the contract's own defaults stand."""
    path = directory / "generation_config.json"
    config = _read_json(path) if path.is_file() else {}
    if not config.get("do_sample"):
        return Sampling()
    try:
        floats = {name: float(config[name]) for name in _FLOATS if config.get(name) is not None}
        top_k = int(config.get("top_k") or 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    for name, value in floats.items():
        try:
            check_sampling_value(name, value)
        except InvalidArgument as error:
            raise ValueError(f"{path.name}: {name}: {error.description}") from error
    if not 0 <= top_k < 2**32:
        raise ValueError(f"{path.name}: top_k: {top_k} is outside [0, 2^32)")
    return replace(Sampling(top_k=top_k), **floats)  # type: ignore[arg-type]  # the names are those of float fields


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value
