from __future__ import annotations

import asyncio

import pytest

from weir_chassis.background import Background


async def for_ever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)  # cleaning up may take a while
        ended.append("ended")


async def test_leaving_cancels_and_waits() -> None:
    ended: list[str] = []
    async with Background() as background:
        background.start(for_ever(ended), name="loop")
        await asyncio.sleep(0)
        assert len(background) == 1
    assert ended == ["ended"]
    assert len(background) == 0
    assert background.failure is None


async def test_a_task_that_returns_is_done() -> None:
    async with Background() as background:
        await background.start(asyncio.sleep(0), name="once")
        assert not background.failed.is_set()


async def test_a_failure_surfaces_and_the_others_go_on() -> None:
    async def fails(message: str) -> None:
        raise ValueError(message)

    ended: list[str] = []
    async with Background() as background:
        background.start(for_ever(ended), name="loop")
        background.start(fails("first"), name="a")
        background.start(fails("second"), name="b")
        await background.failed.wait()
        assert ended == []
    assert str(background.failure) == "first"
    assert ended == ["ended"]


async def test_nothing_starts_afterwards() -> None:
    async with Background() as background:
        pass
    work = asyncio.sleep(0)
    with pytest.raises(AssertionError, match="late"):
        background.start(work, name="late")
    work.close()


async def test_a_cancellation_that_a_task_loses_is_repeated() -> None:
    """A router whose peers went down at the same moment once waited for ever for its own links."""

    async def loses_the_first() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        async with Background() as background:
            background.start(loses_the_first(), name="link")
            await asyncio.sleep(0)
    assert len(background) == 0
