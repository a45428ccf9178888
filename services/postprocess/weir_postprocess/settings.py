"""What the postprocess service is told. `WEIR_POSTPROCESS_<FIELD>` in the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from weir_chassis.settings import ServiceSettings

# The contract's, of a model's name.
_MAX_NAME_BYTES: Final = 128
# What one value for both services may say of a model that only the tokenizer service heeds.
_TOKENIZERS: Final = frozenset({"revision", "max_prompt_tokens"})


def parse_models(value: Any) -> Any:
    """What WEIR_TOKENIZER_MODELS takes, as name → path: `name=path,name=path`, or a JSON object of name → path, or of
    name → {"path", "revision", "max_prompt_tokens"}.

    Raises ValueError for text that is neither.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else _parse_pairs(value)
    if not isinstance(value, Mapping):
        return value
    return {_name(name): _path(name, source) for name, source in value.items()}


def _parse_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, path = (part.strip() for part in item.partition("="))
        if not (equals and name and path):
            raise ValueError(f"{item!r} is not name=path")
        if name in pairs:
            raise ValueError(f"{name!r} is named twice")
        pairs[name] = path
    return pairs


def _name(name: object) -> str:
    if not (isinstance(name, str) and 1 <= len(name.encode()) <= _MAX_NAME_BYTES):
        raise ValueError(f"{name!r} is not a name of 1 to {_MAX_NAME_BYTES} bytes")
    return name


def _path(name: object, source: object) -> str | Path:
    if isinstance(source, Mapping) and source.keys() - _TOKENIZERS == {"path"}:
        source = source["path"]
    if not (source and isinstance(source, str | Path)):
        raise ValueError(f"{name!r} is neither a path nor an object of path, {', '.join(sorted(_TOKENIZERS))}")
    return source


class PostprocessSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_POSTPROCESS_")

    # A vocabulary takes about 20 MB per 100,000 tokens and a second to load, so a mistaken list should not fill memory.
    models: Annotated[dict[str, Path], NoDecode, BeforeValidator(parse_models)] = Field(
        min_length=1, max_length=64, description="as WEIR_TOKENIZER_MODELS: name=path,name=path, or JSON"
    )
    # An open request takes some KiB per output: 4096 of them stay below 100 MiB, and are more than the sequences that
    # the executors behind one router run at once.
    max_open_requests: int = Field(default=4096, ge=1, le=1_000_000, description="open at once on one stream")
    # A router that lives reads at once; one that stops reading holds its requests' memory here.
    slow_consumer_seconds: float = Field(
        default=10.0, gt=0.0, le=3600.0, description="how long one message may wait to be read"
    )
