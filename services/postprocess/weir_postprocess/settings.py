"""What the postprocess service is told. `WEIR_POSTPROCESS_<FIELD>` in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from weir_chassis.settings import ServiceSettings

# The contract's, of a model's name.
_MAX_NAME_BYTES = 128


class PostprocessSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_POSTPROCESS_")

    # A vocabulary takes about 20 MB per 100,000 tokens and a second to load, so a mistaken list should not fill memory.
    models: Annotated[dict[str, Path], NoDecode] = Field(
        min_length=1,
        max_length=64,
        description="name=directory, separated by commas; each directory holds a tokenizer.json",
    )
    # An open request takes some KiB per output: 4096 of them stay below 100 MiB, and are more than the sequences that
    # the executors behind one router run at once.
    max_open_requests: int = Field(default=4096, ge=1, le=1_000_000, description="open at once on one stream")
    # A router that lives reads at once; one that stops reading holds its requests' memory here.
    slow_consumer_seconds: float = Field(
        default=10.0, gt=0.0, le=3600.0, description="how long one message may wait to be read"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        models: dict[str, str] = {}
        for entry in filter(None, (part.strip() for part in value.split(","))):
            name, equals, path = (part.strip() for part in entry.partition("="))
            if not (equals and path and 1 <= len(name.encode()) <= _MAX_NAME_BYTES):
                raise ValueError(f"{entry!r} is not name=directory")
            if name in models:
                raise ValueError(f"{name!r} is there twice")
            models[name] = path
        return models
