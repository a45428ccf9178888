"""Streams that outlive a router process and a connection: two real routers, a real Redis, the stack's workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.conftest import Stack, run_weir, until_idle
from servers import RedisServer, free_ports, redis_server
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_chassis.errors import Cancelled, NotFound
from weir_client.answer import Answer, collect
from weir_client.client import Client, user

_TOKENS = 300
_STOPPING = StoppingConditions(max_tokens=_TOKENS, ignore_eos=True)
_SAMPLINGS = {
    "greedy": SamplingParameters(temperature=0),
    "seeded": SamplingParameters(temperature=1, seed=7),
    "n": SamplingParameters(temperature=1, seed=11, n=2),
}
_ASK = [user("Tell me a story about a miller.")]


@dataclass
class Router:
    """A router process beside that of the stack, on the stack's workers."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def start_router(stack: Stack, server: RedisServer, directory: Path, name: str) -> Router:
    (port,) = free_ports(1)
    told = {
        "WEIR_ROUTER_PORT": str(port),
        "WEIR_ROUTER_TOKENIZERS": ",".join(stack.addresses("tokenizer")),
        "WEIR_ROUTER_EXECUTORS": ",".join(stack.addresses("executor")),
        "WEIR_ROUTER_POSTPROCESSORS": ",".join(stack.addresses("postprocess")),
        "WEIR_ROUTER_REDIS_URL": server.url,
        "WEIR_ROUTER_EXIT_WITH_PARENT": str(os.getpid()),
    }
    log = directory / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "weir_router"], env=os.environ | told, stdout=out, stderr=out)
    return Router(process, f"127.0.0.1:{port}", log)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def routers(stack: Stack, server: RedisServer, tmp_path: Path) -> Iterator[list[Router]]:
    started = [start_router(stack, server, tmp_path, name) for name in ("first", "second")]
    try:
        for each in started:
            asyncio.run(_until_ready(each))
        yield started
    finally:
        for each in started:
            each.end()


async def _until_ready(router: Router) -> None:
    deadline = time.monotonic() + 60
    async with Client(router.address) as client:
        while True:
            try:
                if any(model.healthy_workers for model in await client.models(timeout=5)):
                    await collect(client.chat(_ASK, stopping=StoppingConditions(max_tokens=1), timeout=20))
                    return
            except Exception:
                if time.monotonic() > deadline:
                    raise AssertionError(f"the router did not get ready:\n{router.log.read_text()[-2000:]}") from None
            await asyncio.sleep(0.1)


def same(answer: Answer, undisturbed: Answer) -> bool:
    assert answer.outputs.keys() == undisturbed.outputs.keys()
    for index, output in undisturbed.outputs.items():
        assert answer.outputs[index].token_ids == output.token_ids
        assert answer.outputs[index].text == output.text
        assert answer.outputs[index].finished == output.finished
    assert answer.usage.completion_tokens == undisturbed.usage.completion_tokens
    return True


@pytest.mark.parametrize(("kind", "after"), [("greedy", 1), ("seeded", 100), ("n", 250)])
async def test_a_router_killed_in_mid_stream_costs_its_client_nothing(
    stack: Stack, routers: list[Router], kind: str, after: int
) -> None:
    """The iterator goes on by itself: at the second router, which takes the request over."""
    first, second = routers
    async with Client(f"{first.address},{second.address}") as client:
        undisturbed = await collect(client.chat(_ASK, sampling=_SAMPLINGS[kind], stopping=_STOPPING, timeout=60))
        answer, events, reasons = Answer(), [], []
        async for event in client.chat(
            _ASK, sampling=_SAMPLINGS[kind], stopping=_STOPPING, timeout=100, retain=60, request_id=f"killed-{kind}"
        ):
            answer.add(event)
            events.append(event.WhichOneof("event"))
            if event.HasField("continued"):
                reasons.append((event.continued.reason, event.continued.exact))
            tokens = sum(len(output.token_ids) for output in answer.outputs.values())
            if tokens >= after and first.process.poll() is None:
                first.signal(signal.SIGKILL)
                first.process.wait()
    assert same(answer, undisturbed)
    # Nobody is told where Redis had heard of no token yet, as of all of them, when the router died.
    assert reasons in ([], [("WORKER_LOST", True)])
    assert events[0] == "accepted"
    assert events[-2:] == ["usage", "receipt"]
    assert events.count("accepted") == 1
    await until_idle(stack.addresses("executor"))


async def test_a_router_that_drains_hands_its_streams_on(stack: Stack, routers: list[Router]) -> None:
    """A second SIGTERM does not wait for the drain: its calls are cut, and its lease is given back at once."""
    first, second = routers
    sampling = _SAMPLINGS["seeded"]
    async with Client(f"{first.address},{second.address}") as client:
        undisturbed = await collect(client.chat(_ASK, sampling=sampling, stopping=_STOPPING, timeout=60))
        answer = Answer()
        async for event in client.chat(
            _ASK, sampling=sampling, stopping=_STOPPING, timeout=100, retain=60, request_id="drained"
        ):
            answer.add(event)
            if len(answer.outputs) and first.process.poll() is None and len(answer.outputs[0].token_ids) < _TOKENS:
                first.signal(signal.SIGTERM)
    assert same(answer, undisturbed)
    assert first.process.wait(30) is not None
    await until_idle(stack.addresses("executor"))


async def test_a_connection_that_is_cut_is_resumed_and_any_router_serves_and_cancels(
    stack: Stack, routers: list[Router]
) -> None:
    first, second = routers
    sampling = _SAMPLINGS["seeded"]
    async with Client(first.address) as one, Client(second.address) as two:
        undisturbed = await collect(one.chat(_ASK, sampling=sampling, stopping=_STOPPING, timeout=60))
        async with Cut(first.address) as cut, Client(cut.address) as client:
            answer = Answer()
            async for event in client.chat(
                _ASK, sampling=sampling, stopping=_STOPPING, timeout=100, retain=60, request_id="cut"
            ):
                answer.add(event)
                if event.HasField("delta") and cut.cuts < 2:
                    cut.cut()
        assert cut.cuts == 2
        assert same(answer, undisturbed)
        assert same(await collect(two.resume("cut", timeout=30)), undisturbed)
        long = StoppingConditions(max_tokens=1500, ignore_eos=True)
        stream = one.chat(_ASK, sampling=sampling, stopping=long, timeout=100, retain=60, request_id="long")
        assert (await anext(stream)).HasField("accepted")
        await two.cancel("long")
        with pytest.raises(Cancelled):
            await collect(stream)
        with pytest.raises(NotFound):
            await two.resume("cut", tenant="somebody else").__anext__()
    await until_idle(stack.addresses("executor"))


@dataclass
class Cut:
    """A wire between a client and a router, which can be cut."""

    to: str
    cuts: int = 0

    async def __aenter__(self) -> Cut:
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.abort()
        await self._server.wait_closed()

    def cut(self) -> None:
        self.cuts += 1
        self.abort()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.to.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, far_writer}
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer), return_exceptions=True)
        for each in (writer, far_writer):
            each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def test_the_command_retains_resumes_and_cancels(stack: Stack) -> None:
    """One router, without a Redis: what is retained is found where it runs."""
    asked = stack.weir("chat", "Tell me a story.", "--retain", "60", "--max-tokens", "20", "-t", "0")
    assert asked.returncode == 0, asked.stderr
    found = re.search(r"weir resume (\w+)", asked.stderr)
    assert found is not None, asked.stderr
    again = run_weir(stack.state, "resume", found[1])
    assert (again.returncode, again.stdout) == (0, asked.stdout), again.stderr
    assert run_weir(stack.state, "cancel", found[1]).returncode == 0
    unknown = run_weir(stack.state, "cancel", "unknown")
    assert (unknown.returncode, "NOT_FOUND" in unknown.stderr) == (1, True)
