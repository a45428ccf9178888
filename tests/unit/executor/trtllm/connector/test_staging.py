from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unit.executor.trtllm.connector.making import HASHES, ROOT, TOKENS, new_area, prefix
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.staging import Staging

REQUEST = GenerationRequest(
    key=1,
    token_ids=TOKENS,
    max_tokens=4,
    sampling=Sampling(),
    block_hashes=HASHES,
    cache_scope=ROOT,
    stored_prefix=prefix(0, 3),
)


@pytest.fixture
def area(tmp_path: Path) -> Area:
    return new_area(tmp_path)


async def until_empty(area: Area) -> None:
    async with asyncio.timeout(10):
        while area.staged_bytes:
            await asyncio.sleep(0.001)


async def test_a_request_s_prefix_is_staged_until_nobody_wants_it(area: Area) -> None:
    staging = Staging(area)
    assert await staging.stage(REQUEST)
    assert area.staged_bytes == 24
    staging.drop(1)
    staging.drop(1)
    staging.drop(2)
    await until_empty(area)


async def test_what_cannot_be_staged_is_computed(
    area: Area, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Area, "_write", full)
    assert not await Staging(area).stage(REQUEST)
    assert "no space left" in caplog.text
    assert area.staged_bytes == 0


async def test_without_room_nobody_waits(tmp_path: Path) -> None:
    area = new_area(tmp_path, max_bytes=30)
    staging = Staging(area)
    assert await staging.stage(REQUEST)
    assert not await staging.stage(replace(REQUEST, key=2))
    staging.drop(2)
    assert area.staged_bytes == 24, "it had none"


def test_a_scope_that_cannot_be_noted_stops_no_request(area: Area, caplog: pytest.LogCaptureFixture) -> None:
    staging = Staging(area)
    staging.note_scope(ROOT)
    staging.close()
    staging.note_scope(bytes(16))
    assert "a scope cannot be noted" in caplog.text
    staging.close()
