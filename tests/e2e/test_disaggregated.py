"""Two prefill and two decode workers of the demo model: the tokens of whole executors, and nothing left anywhere."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nats
import pytest

from contract.router_contract import Answer, collect
from e2e.conftest import Stack, json_lines, load_of, start_stack, until_idle
from servers import NatsServer, nats_server
from weir.executor.v1.prefill_queue import CONSUMER
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_client.client import Client

SEED = 4
_MIN_TOKENS = 48  # of a prompt that is computed apart
_STORY = (
    "Once upon a time there was a little fox who lived beside a river. Every morning the fox walked along the water "
    "to see whether the fish had come back, and every evening it went home and told its mother what it had seen. "
)
_SAMPLINGS = {
    "greedy": SamplingParameters(temperature=0),
    "seeded": SamplingParameters(temperature=1, seed=11),
    "several": SamplingParameters(temperature=0.8, top_p=0.9, seed=12, n=2),
    "logprobs": SamplingParameters(temperature=1, seed=13, logprobs=2),
    "penalties": SamplingParameters(temperature=0.7, seed=14, repetition_penalty=1.2, n=2),
}
_STOPPINGS = {
    "length": StoppingConditions(max_tokens=24, ignore_eos=True),
    "stop": StoppingConditions(max_tokens=40, stop=[" the", "."]),
}


_Request = tuple[str, SamplingParameters, StoppingConditions]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The stack's own: the last test ends it."""
    with nats_server(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, broker: NatsServer) -> Iterator[Stack]:
    arguments = ["--prefill", "2", "--decode", "2", "--disaggregate-tokens", str(_MIN_TOKENS), "--nats", broker.url]
    running = start_stack(tmp_path_factory.mktemp("apart"), *arguments)
    yield running
    assert running.stop() == 0, (running.state / "up.log").read_text()


def _prompt(index: int) -> str:
    """No two begin alike, so that none finds another's blocks."""
    return f"{index} foxes. " + _STORY * (1 + index % 3)


async def _ask(client: Client, prompt: str, sampling: SamplingParameters, stopping: StoppingConditions) -> Answer:
    answer = await collect(client.generate(prompt, sampling=sampling, stopping=stopping, timeout=60))
    answer.check_complete(sampling.n or 1)
    return answer


def _told(answer: Answer) -> object:
    """All of an answer that must not depend on who computed it."""
    usage = answer.usage
    return answer.token_ids, answer.texts, answer.finished, usage.prompt_tokens, usage.completion_tokens


async def test_tokens_are_those_of_whole_executors_and_nothing_is_left(
    stack: Stack, apart: Stack, broker: NatsServer
) -> None:
    plan: list[_Request] = [
        (_prompt(index), sampling, stopping)
        for index, (sampling, stopping) in enumerate(
            (sampling, stopping) for sampling in _SAMPLINGS.values() for stopping in _STOPPINGS.values()
        )
    ] * 2
    async with Client(stack.router) as whole, Client(apart.router) as split:
        wanted = await asyncio.gather(*(_ask(whole, *each) for each in plan))
        answers = await asyncio.gather(*(_ask(split, *each) for each in plan))
    for answer, want, (_, sampling, _) in zip(answers, wanted, plan, strict=True):
        assert _told(answer) == _told(want)
        for index, entries in answer.logprobs.items():
            logprobs = [entry.logprob for entry in entries]
            assert logprobs == pytest.approx([entry.logprob for entry in want.logprobs[index]], abs=1e-4)
            assert len(logprobs) == (len(answer.token_ids[index]) if sampling.HasField("logprobs") else 0)
    workers = apart.addresses("executor")
    assert {answer.receipt.prefill_worker for answer in answers} == set(workers[:2])
    assert {answer.receipt.worker for answer in answers} == set(workers[2:])
    assert (await _taken_over(apart)) > 0
    assert (await _delivered_jobs(broker)) >= len(plan)
    await until_idle(workers)
    held = [await load_of(address) for address in workers]
    print(
        f"disaggregated: {len(plan)} requests, {len(answers)} equal, "
        f"blocks {sum(load.total_blocks - load.free_blocks for load in held)}, "
        f"leases {sum(load.live_requests + load.live_handoffs for load in held)}"
    )


async def _taken_over(apart: Stack) -> int:
    """Tokens that decode workers did not have to prefill: they have computed less of prompts than prefill workers."""
    loads = [await load_of(address) for address in apart.addresses("executor")]
    return sum(load.prefill_tokens for load in loads[:2]) - sum(load.prefill_tokens for load in loads[2:])


async def _delivered_jobs(broker: NatsServer) -> int:
    """Prompts that prefill workers have taken out of the queue."""
    async with await nats.connect(broker.url) as client:
        jetstream = client.jetstream()
        names = [stream.config.name or "" for stream in await jetstream.streams_info()]
        (name,) = [name for name in names if name.startswith("weir_prefill_")]
        delivered = (await jetstream.consumer_info(name, CONSUMER)).delivered
        assert delivered is not None
        return int(delivered.consumer_seq)


async def test_a_short_prompt_is_computed_where_it_is_decoded(apart: Stack) -> None:
    async with Client(apart.router) as client:
        answer = await _ask(client, "A short one", _SAMPLINGS["greedy"], _STOPPINGS["length"])
    assert answer.receipt.prefill_worker == ""
    assert answer.receipt.worker in apart.addresses("executor")[2:]


async def _wanted(stack: Stack, plan: list[_Request]) -> list[object]:
    """What whole executors answer."""
    async with Client(stack.router) as client:
        return [_told(answer) for answer in await asyncio.gather(*(_ask(client, *each) for each in plan))]


def _requests(first: int, count: int) -> list[_Request]:
    samplings = list(_SAMPLINGS.values())
    return [(_prompt(first + i), samplings[i % len(samplings)], _STOPPINGS["length"]) for i in range(count)]


def _signal(apart: Stack, addresses: list[str], number: signal.Signals) -> None:
    for address in addresses:
        os.kill(apart.pid(address), number)


async def _until_all_serve(apart: Stack) -> None:
    """Those that were killed have come back, and the router knows them."""
    await until_idle(apart.addresses("executor"), seconds=60)
    async with Client(apart.router) as client, asyncio.timeout(30):
        while sum(model.healthy_workers for model in await client.models()) < 4:
            await asyncio.sleep(0.05)


async def test_prefill_workers_that_are_killed_while_they_prefill_cost_no_request(stack: Stack, apart: Stack) -> None:
    plan, prefills = _requests(100, 8), apart.addresses("executor")[:2]
    wanted = await _wanted(stack, plan)
    async with Client(apart.router) as client:
        _signal(apart, prefills, signal.SIGSTOP)
        asked = [asyncio.create_task(_ask(client, *each)) for each in plan]
        await asyncio.sleep(1.5)  # for longer than the queue is waited for: they have been given the requests by now
        assert not any(task.done() for task in asked)
        _signal(apart, prefills, signal.SIGKILL)
        answers = await asyncio.gather(*asked)
    assert [_told(answer) for answer in answers] == wanted
    assert not any(answer.receipt.prefill_worker for answer in answers)
    await _until_all_serve(apart)


async def test_prefill_workers_that_are_killed_before_their_blocks_are_read_cost_no_request(
    stack: Stack, apart: Stack
) -> None:
    plan, workers = _requests(200, 8), apart.addresses("executor")
    wanted = await _wanted(stack, plan)
    async with Client(apart.router) as client:
        _signal(apart, workers[2:], signal.SIGSTOP)
        asked = [asyncio.create_task(_ask(client, *each)) for each in plan]
        async with asyncio.timeout(30):
            while sum([(await load_of(address)).live_handoffs for address in workers[:2]]) < len(plan):
                await asyncio.sleep(0.02)
        _signal(apart, workers[:2], signal.SIGKILL)
        _signal(apart, workers[2:], signal.SIGCONT)
        answers = await asyncio.gather(*asked)
    assert [_told(answer) for answer in answers] == wanted
    assert all(answer.receipt.prefill_worker for answer in answers), "their first tokens had come"
    await _until_all_serve(apart)


async def test_prefill_workers_that_are_killed_at_any_time_cost_no_request(stack: Stack, apart: Stack) -> None:
    plan, rng, gate = _requests(300, 60), random.Random(SEED), asyncio.Semaphore(6)
    wanted = await _wanted(stack, plan)

    async def one(client: Client, index: int) -> Answer:
        async with gate:
            if index in (4, 16, 28, 40):
                with suppress(ProcessLookupError):  # one that was killed before has not come back yet
                    _signal(apart, [rng.choice(apart.addresses("executor")[:2])], signal.SIGKILL)
            await asyncio.sleep(rng.uniform(0, 0.02))
            return await _ask(client, *plan[index])

    async with Client(apart.router) as client:
        answers = await asyncio.gather(*(one(client, index) for index in range(len(plan))))
    equal = sum(_told(answer) == want for answer, want in zip(answers, wanted, strict=True))
    handed = sum(bool(answer.receipt.prefill_worker) for answer in answers)
    print(f"killed prefill workers: {len(plan)} requests, {equal} equal, {handed} of them handed over")
    assert equal == len(plan)
    await _until_all_serve(apart)


async def test_clients_that_leave_in_the_middle_leave_nothing(apart: Stack) -> None:
    rng, gate = random.Random(SEED), asyncio.Semaphore(8)

    async def leave(client: Client, index: int) -> None:
        async with gate:
            task = asyncio.create_task(
                _ask(client, _prompt(200 + index), _SAMPLINGS["several"], StoppingConditions(max_tokens=300))
            )
            await asyncio.sleep(rng.uniform(0, 0.12))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async with Client(apart.router) as client:
        await asyncio.gather(*(leave(client, index) for index in range(60)))
        await until_idle(apart.addresses("executor"), seconds=20)  # no lease has lapsed by then
        assert (await _ask(client, _prompt(1), _SAMPLINGS["greedy"], _STOPPINGS["length"])).receipt.prefill_worker


def test_status_says_who_does_what(apart: Stack) -> None:
    reports = json_lines(apart.weir("status", "--json").stdout)
    roles = [report["role"] for report in reports if report["service"] == "executor"]
    assert roles == ["prefill", "prefill", "decode", "decode"]


async def _until_none_is_new(apart: Stack) -> None:
    """Those that came back from an earlier test's kill get no less than the others any more."""
    async with asyncio.timeout(60):
        while True:
            (fleet,) = json_lines((await asyncio.to_thread(apart.weir, "fleet", "--json")).stdout)
            workers = fleet["workers"]
            assert isinstance(workers, list)
            if all(worker.get("ramp") == 1.0 for worker in workers):
                return
            await asyncio.sleep(0.5)


async def test_without_the_broker_prefill_workers_are_chosen_directly(
    stack: Stack, apart: Stack, broker: NatsServer
) -> None:
    """Before the router knows that it has gone, and after."""
    plan = _requests(400, 12)
    wanted = await _wanted(stack, plan)
    await _until_none_is_new(apart)
    async with Client(apart.router) as client:
        first = [asyncio.create_task(_ask(client, *each)) for each in plan[:6]]
        await asyncio.to_thread(broker.kill)
        # At once, so that what each is given counts for the next: a load that was reported lags by up to a second.
        answers = [*await asyncio.gather(*first), *await asyncio.gather(*(_ask(client, *each) for each in plan[6:]))]
    assert [_told(answer) for answer in answers] == wanted
    assert {answer.receipt.prefill_worker for answer in answers[6:]} == set(apart.addresses("executor")[:2])
    await until_idle(apart.addresses("executor"), seconds=20)


def test_prefill_without_decode_is_refused(tmp_path: Path, stack: Stack) -> None:
    refused = stack.weir("up", "--port", "0", "--prefill", "1")
    assert refused.returncode == 1
    assert "--decode" in refused.stderr
    assert "Traceback" not in refused.stderr
