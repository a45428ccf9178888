"""What the tokenizer service is told, from the environment: `WEIR_TOKENIZER_…`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from weir_chassis.settings import ServiceSettings

_MIB = 1 << 20


class ModelSource(BaseModel):
    """One model to serve. `None` is "read it from the directory"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="a Hugging Face model directory; its weights are not needed")
    revision: str | None = Field(
        default=None, min_length=1, max_length=128, description="instead of the files' fingerprint"
    )
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="instead of the model's context")


def parse_models(value: Any) -> Any:
    """`name=path,name=path`, or a JSON object of name → path, or name → {"path", "revision", "max_prompt_tokens"}.

    Raises ValueError for text that is neither.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else _parse_pairs(value)
    if not isinstance(value, Mapping):
        return value
    return {name: {"path": source} if isinstance(source, str | Path) else source for name, source in value.items()}


def _parse_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, path = item.partition("=")
        if not equals or not name.strip() or not path.strip():
            raise ValueError(f"{item!r} is not name=path")
        if name.strip() in pairs:
            raise ValueError(f"{name.strip()!r} is named twice")
        pairs[name.strip()] = path.strip()
    return pairs


ModelName = Annotated[str, Field(min_length=1, max_length=128)]


class TokenizerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TOKENIZER_")

    models: Annotated[dict[ModelName, ModelSource], NoDecode, BeforeValidator(parse_models), Field(min_length=1)] = (
        Field(description="name=path,name=path, or JSON: name → path or {path, revision, max_prompt_tokens}")
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="for all models, instead of each one's context"
    )
    max_text_bytes: int = Field(
        # About a million tokens, the longest context there is; encoding them takes a core about two seconds.
        4 * _MIB,
        ge=1,
        # The texts, and the ids that answer them, each fit one message of 64 MiB.
        le=16 * _MIB,
        description="all texts of one request together, and what a template renders, in bytes of UTF-8",
    )
    cache_bytes: int = Field(64 * _MIB, ge=0, description="encodings kept, over all models; 0 keeps none")
    threads: int = Field(2, ge=1, le=256, description="requests that are rendered and encoded at once")
    max_pending: int = Field(256, ge=1, description="requests that wait or run; more are refused with OVERLOADED")
    max_pending_bytes: int = Field(
        64 * _MIB, ge=1, description="bytes of the requests that wait or run; more are refused with OVERLOADED"
    )
    # More than all threads have waiting before they refuse, so that one router is not refused for its stream's sake.
    max_open_asks: int = Field(
        1024, ge=1, le=1_000_000, description="open at once on one stream; more are refused with OVERLOADED"
    )
    # A router that lives reads at once; one that stops reading holds its answers' memory here.
    slow_consumer_seconds: float = Field(
        10.0, gt=0.0, le=3600.0, description="how long one message may wait to be read"
    )
    render_seconds: float = Field(2.0, gt=0.0, le=60.0, description="the longest that one template may run")

    def prompt_tokens_of(self, source: ModelSource) -> int | None:
        """The operator's limit for one model: its own goes before the one for all."""
        return source.max_prompt_tokens or self.max_prompt_tokens
