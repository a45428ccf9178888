"""Children that die, and children that will not: how they are revived, counted and ended."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weir_chassis.child_process import StartError
from weir_local import processes
from weir_local.placement import PlannedService
from weir_local.processes import Child, Events, Stack

_DIES = "print('my last words', flush=True); raise SystemExit(3)"
_STAYS = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


@dataclass
class Toys:
    """Services that are a few lines of Python."""

    directory: Path
    lost: list[int] = field(default_factory=list)

    @property
    def events(self) -> Events:
        return Events(
            ready=lambda plan, seconds: None,
            lost=lambda plan, code: self.lost.append(code),
            changed=lambda services: None,
        )

    async def spawn(self, service: str, code: str) -> Child:
        (self.directory / f"weir_{service}.py").write_text(code)
        plan, log = PlannedService(service, "127.0.0.1:1", {}), self.directory / f"{service}.log"
        return Child(plan, await processes._start(plan, log))


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "_RESTART_PAUSE_SECONDS", 0.0)
    return Toys(tmp_path)


async def until_said(child: Child, word: str) -> None:
    async with asyncio.timeout(10):
        while word not in child.process.log.read_text():  # another process writes it
            await asyncio.sleep(0.01)


async def test_a_child_that_dies_while_it_starts_is_counted_and_its_words_are_kept(toys: Toys) -> None:
    child = await toys.spawn("toy", _DIES)
    stack = Stack([child])
    await processes._keep_alive(child, stack, toys.events)
    with pytest.raises(StartError, match=r"toy ended 6 times:\n.*my last words"):
        stack.failed.result()
    assert toys.lost == [3] * 6
    assert child.process.log.read_text().count("my last words") == 6


async def test_ends_that_are_far_apart_do_not_add_up(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STEADY_SECONDS", 0.0)
    child = await toys.spawn("toy", _DIES)
    keeper = asyncio.create_task(processes._keep_alive(child, Stack([child]), toys.events))
    async with asyncio.timeout(30):
        while len(toys.lost) <= processes.MAX_RESTARTS + 1:  # the keeper counts
            await asyncio.sleep(0.01)
    assert not keeper.done()
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await child.process.wait()


async def test_whoever_does_not_end_in_time_is_killed_and_nobody_is_left(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.2)
    children = [await toys.spawn(service, _STAYS) for service in ("worker", "router")]
    for child in children:
        await until_said(child, "deaf")
    await processes._stop(children)
    assert [child.process.returncode for child in children] == [-9, -9]


async def test_a_stop_that_is_cancelled_kills_all_at_once(toys: Toys) -> None:
    children = [await toys.spawn(service, _STAYS) for service in ("worker", "router")]
    for child in children:
        await until_said(child, "deaf")
    stop, began = asyncio.create_task(processes._stop(children)), time.monotonic()
    await asyncio.sleep(0.1)
    stop.cancel()
    await asyncio.gather(stop, return_exceptions=True)
    assert [child.process.returncode for child in children] == [-9, -9]
    assert time.monotonic() - began < processes.STOP_SECONDS - 10
