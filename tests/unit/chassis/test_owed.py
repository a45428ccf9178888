from __future__ import annotations

import asyncio

import pytest

from weir_chassis import owed as module
from weir_chassis.owed import Owed


async def test_a_call_that_is_cancelled_owes_it_just_the_same() -> None:
    owed, given_back = Owed("give-back"), asyncio.Event()

    async def give_back() -> None:
        given_back.set()

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            owed.start(give_back())

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    assert calling.cancelled()
    await owed.close()
    assert given_back.is_set()
    assert len(owed) == 0


async def test_the_end_waits_a_moment_and_then_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.01)
    owed, cancelled = Owed("give-back"), False

    async def never() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def fails() -> None:
        raise RuntimeError("the other side is gone")

    owed.start(never())
    owed.start(fails())
    await owed.close()
    assert cancelled
    assert len(owed) == 0
