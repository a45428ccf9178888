from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from unit.tokenizer.model_directories import write_model
from weir_tokenizer.encoding_cache import EncodingCache
from weir_tokenizer.model import TextModel, load_model
from weir_tokenizer.sandbox import TemplateEnvironment

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LoadModel = Callable[..., TextModel]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what a thread brings about, which no event tells."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def environment() -> TemplateEnvironment:
    return TemplateEnvironment(lambda: NOW)


@pytest.fixture
def load(tmp_path: Path, environment: TemplateEnvironment) -> LoadModel:
    """Loads a model from a directory written with `write_model`'s arguments."""

    def load(*, cache: EncodingCache | None = None, max_text_bytes: int = 1 << 20, **files: Any) -> TextModel:
        directory = write_model(tmp_path / "model", **files)
        return load_model(
            "m",
            directory,
            revision="r",
            max_prompt_tokens=None,
            max_text_bytes=max_text_bytes,
            environment=environment,
            cache=EncodingCache(1 << 20) if cache is None else cache,
        )

    return load
