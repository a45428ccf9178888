"""A call elsewhere ends in time, raises nothing, and is not made while it would be in vain."""

from __future__ import annotations

import asyncio
from random import Random

from structlog.testing import capture_logs

from weir_chassis.store_link import Refused, StoreLink
from weir_chassis.testing import VirtualClock


async def answers() -> str:
    return "here"


async def fails() -> str:
    raise ConnectionError("nobody there" + "!" * 1000)


async def hangs() -> str:
    await asyncio.Event().wait()
    return "never"


async def refuses() -> str:
    raise Refused("it is full")


async def ask(link: StoreLink, work: object) -> str:
    return await link.ask(work, otherwise="nothing", seconds=0.02)  # type: ignore[arg-type]


async def test_a_failure_is_told_until_there_is_an_answer() -> None:
    link = StoreLink("redis", (), clock=VirtualClock(), random=Random(1))
    assert await ask(link, answers) == "here"
    assert link.fault == ""
    assert await ask(link, fails) == "nothing"
    assert link.fault.startswith("nobody there")
    assert len(link.fault) == 300
    assert await ask(link, hangs) == "nothing"
    assert link.fault == "no answer within 0.02 s"
    assert await ask(link, answers) == "here"
    assert link.fault == ""


async def test_after_some_failures_it_is_not_asked_for_a_while() -> None:
    clock = VirtualClock()
    link = StoreLink("redis", (), clock=clock, random=Random(1))
    for _ in range(3):
        assert await ask(link, fails) == "nothing"
    assert await ask(link, answers) == "nothing"
    await clock.advance(1.0)
    assert await ask(link, answers) == "here"
    assert await ask(link, answers) == "here"


async def test_a_mistake_of_ours_raises_nothing_and_is_logged() -> None:
    async def mistaken() -> str:
        raise AttributeError("no such thing")

    link = StoreLink("redis", (), clock=VirtualClock(), random=Random(1))
    with capture_logs() as logs:
        assert await ask(link, fails) == "nothing"
        assert [line["event"] for line in logs] == ["far_store_lost"]
        assert await ask(link, mistaken) == "nothing"
        assert [line["event"] for line in logs] == ["far_store_lost", "far_store_failed"]


async def test_who_refuses_answers() -> None:
    link = StoreLink("redis", (), clock=VirtualClock(), random=Random(1))
    for _ in range(10):
        assert await ask(link, refuses) == "nothing"
        assert await ask(link, answers) == "here"
        assert link.fault == "it is full"
    link.took()
    assert link.fault == ""


async def test_a_caller_who_leaves_is_no_failure() -> None:
    link = StoreLink("redis", (), clock=VirtualClock(), random=Random(1))
    for _ in range(5):
        task = asyncio.ensure_future(link.ask(hangs, otherwise="nothing", seconds=60))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert await ask(link, answers) == "here"
