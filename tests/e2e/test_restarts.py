"""Each service killed in turn under load, then `weir up` itself: every request ends once, in time, and all return."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import Stack, start_stack, until_idle
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_chassis.errors import WeirError, reason_name
from weir_client.answer import collect
from weir_client.client import Client, user

_CHATS = 20
_DEADLINE_SECONDS = 30.0
# How a chat may end whose worker was killed under it.
_TOKENS = 200  # enough for an answer to be under way when its service is killed
_ENDINGS = {"completed", "WORKER_LOST", "NO_WORKER"}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of one worker per kind, so that nobody can stand in for the one that is killed."""
    running = start_stack(tmp_path_factory.mktemp("mortal"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.parametrize("service", ["kvstore", "tokenizer", "postprocess", "executor", "router"])
async def test_a_killed_service_fails_no_request_for_long(mortal: Stack, service: str) -> None:
    (address,) = mortal.addresses(service)
    async with Client(mortal.router) as client:
        chats = [asyncio.create_task(_chat(client, index)) for index in range(_CHATS)]
        await asyncio.sleep(0.3)
        killed = mortal.pid(address)
        os.kill(killed, signal.SIGKILL)
        endings = Counter(await asyncio.gather(*chats))
        print(f"{service}: {dict(endings)}")
        assert set(endings) <= _ENDINGS, endings
        if service == "kvstore":
            assert endings["completed"] == _CHATS, "nothing depends on the store but speed"
        await _until_answered(client)
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while mortal.pid(address) == killed:  # nobody had to wait for a store to come back
            await asyncio.sleep(0.05)
    await until_idle(mortal.addresses("executor"))


async def _chat(client: Client, index: int) -> str:
    stopping = StoppingConditions(max_tokens=_TOKENS, ignore_eos=True)
    events = client.chat([user(f"Tell me story {index}.")], stopping=stopping, timeout=_DEADLINE_SECONDS)
    try:
        answer = await collect(events)
    except WeirError as error:
        return reason_name(error.reason)
    assert len(answer.outputs[0].token_ids) == answer.usage.completion_tokens == _TOKENS
    return "completed"


async def _until_answered(client: Client) -> None:
    """Until a new request is served again."""
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while await _chat(client, 0) != "completed":  # another process comes back
            await asyncio.sleep(0.1)


def test_a_killed_parent_leaves_no_orphans(mortal: Stack) -> None:
    pids = [service.pid for service in mortal.services]
    os.kill(mortal.process.pid, signal.SIGKILL)
    _all_end(pids)


@pytest.mark.parametrize("placement", [[], ["--one-process"]], ids=["processes", "one-process"])
async def test_a_second_ctrl_c_does_not_wait_for_the_drain(tmp_path: Path, placement: list[str]) -> None:
    running = start_stack(tmp_path, *placement)
    pids = [service.pid for service in running.services]
    async with Client(running.router) as client:
        # Eight outputs, so that no fast machine ends the answer before the second signal comes.
        sampling, stopping = SamplingParameters(n=8), StoppingConditions(max_tokens=1500, ignore_eos=True)
        events = client.chat([user("Tell me a story.")], sampling=sampling, stopping=stopping, timeout=60)
        await anext(events)
        answer = asyncio.create_task(collect(events))
        running.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(_until_said, running.state / "up.log", "draining")
        running.process.send_signal(signal.SIGINT)
        with pytest.raises(WeirError):  # it is told so, and is not left to wait
            await asyncio.wait_for(answer, 10)
        assert await asyncio.to_thread(running.process.wait, 10) == 130
    _all_end(pids, seconds=1.0)
    assert "Traceback" not in (running.state / "up.log").read_text()


def test_ctrl_c_while_it_starts_ends_it(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "weir_client.cli", "up", "--port", "0"]
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(
            arguments, env=os.environ | {"WEIR_STATE_DIR": str(tmp_path)}, stdout=log, stderr=subprocess.STDOUT
        )
    _until_said(tmp_path / "up.log", "ready")  # the first of them, and an executor takes longer
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 5
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "ready: weir chat" not in (tmp_path / "up.log").read_text()
    _all_end(children, seconds=1.0)


def test_a_second_stack_on_the_same_port_is_refused_and_the_first_stays_known(stack: Stack) -> None:
    before = stack.services
    refused = stack.weir("up", "--port", stack.router.rpartition(":")[2])
    assert refused.returncode == 1
    assert "is taken" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stack.services == before


def _all_end(pids: list[int], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _until_said(log: Path, word: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while word not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
