"""What a model host is told, by `WEIR_MODEL_HOST_…` variables. `WEIR_EXECUTOR_…` variables are for its executors."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from weir_chassis.settings import ServiceSettings


class ModelHostSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_MODEL_HOST_", frozen=True, extra="forbid")

    model_folder: Path = Field(description="below it are all models that may be loaded")
    log_dir: Path = Field(description="its executors' logs, a file for each model")
    # Each is a process with its weights; what fits is the operator's to know.
    max_models: int = Field(default=4, ge=1, le=64, description="models loaded at once")
    ports: str = Field(default="", description="for its executors, `first-last`; empty: any free ones")
    # A large model may take minutes to load; a process that dies while loading is noticed at once, not by this clock.
    start_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0, description="a model may take to load")
    stop_seconds: float = Field(
        default=40.0, gt=0.0, le=3600.0, description="an executor may take to end; its own drain should be shorter"
    )

    @field_validator("ports")
    @classmethod
    def _is_a_range(cls, text: str) -> str:
        if text:
            port_range(text)
        return text

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if not self.model_folder.is_dir():
            raise ValueError(f"model_folder: {self.model_folder} is no directory")
        if self.ports and len(port_range(self.ports)) < self.max_models:
            raise ValueError(f"ports: {len(port_range(self.ports))}, and max_models is {self.max_models}")
        return self


def port_range(text: str) -> range:
    """Of `7711-7718`. Raises ValueError."""
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        raise ValueError(f"{text!r} is no range such as 7711-7718") from None
    if not found or found[0] < 1 or found[-1] > 65535:
        raise ValueError(f"{text!r}: ports are 1 to 65535, the first no higher than the last")
    return found
