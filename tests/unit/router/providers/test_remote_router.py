"""Two whole routers, one of which is a worker of the other: passed on, told of, confined, and never in a circle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.suite import Suite, suite
from unit.router.providers.making import chat
from weir.fleet.v1.instance_pb2 import Price
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Overloaded
from weir_chassis.inmemory import InMemoryServer
from weir_router.fleet.views import WorkerState
from weir_router.providers.errors import Away
from weir_router.providers.via import MAX_ROUTERS, via_metadata

TENANTS = """
[tenants.acme]
regions = ["eu"]
[tenants.zoo]
regions = ["eu"]
fallback_regions = ["us"]
"""
# Known here as "us"; what it charges, it says itself.
US = """
[[routers]]
name = "us"
address = "memory:us"
region = "us"
probe_seconds = 0.02
"""
EU = US.replace("us", "eu")


@asynccontextmanager
async def two_routers(
    tmp_path: Path, of_eu: str = US + TENANTS, of_us: str = "", *, ready: bool = True
) -> AsyncIterator[tuple[Suite, Suite]]:
    """A router with all its workers in eu, and one in us. `of_eu`: its routing file."""
    routers: dict[str, InMemoryServer] = {}
    async with AsyncExitStack() as stack:
        running: dict[str, Suite] = {}
        for region, rules in (("us", ""), ("eu", of_eu)):
            file = tmp_path / f"{region}.toml"
            file.write_text(rules)
            entered = suite(
                regions=[region],
                region=region,
                prices=[Price(prompt_micros=1_000_000, completion_micros=3_000_000, currency="USD")],
                config_file=file,
                config_poll_seconds=0.02,
                routers=routers,
                own_name=region,
            )
            running[region] = await stack.enter_async_context(entered)
        if of_us:
            (tmp_path / "us.toml").write_text(of_us)
            await running["us"].until(lambda: bool(running["us"].fleet.snapshot().externals))
        for one in running.values() if ready else ():
            await until_there(one)
        yield running["eu"], running["us"]


async def until_there(running: Suite) -> None:
    """What it knows outside its own suite has answered, and serves something."""

    def there() -> bool:
        externals = running.fleet.snapshot().externals
        return all(worker.state is WorkerState.SERVING and worker.models for worker in externals)

    await running.until(there)


async def lose(running: Suite, *names: str) -> None:
    for name in names or ("executor-0", "tokenizer-0", "postprocess-0"):
        running.fakes.workers[name].drain()
    await running.until(lambda: running.num_serving() == (3 - len(names) if names else 0))


def text(prompt: str = "hello", **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=prompt, stopping=StoppingConditions(max_tokens=4), **fields)  # type: ignore[arg-type]


async def ask(running: Suite, tenant: str = "", request: pb.GenerateRequest | None = None) -> Answer:
    metadata = (("weir-tenant", tenant),) if tenant else ()
    return await collect(running.router.Generate(request or text(), metadata=metadata, timeout=20))


def touched(running: Suite) -> bool:
    fakes = running.fakes
    return bool(running.executor.submits or fakes.tokenizers[0].calls or running.postprocess.opens)


async def test_a_request_is_passed_on_whole_and_its_receipt_names_all(tmp_path: Path) -> None:
    request = text(sampling=SamplingParameters(n=2, seed=7, logprobs=0))
    async with two_routers(tmp_path) as (eu, us):
        want = await ask(us, request=request)
        await lose(eu)
        answer = await ask(eu, request=request)
        answer.check_complete(2)
        assert (answer.token_ids, answer.texts, answer.usage) == (want.token_ids, want.texts, want.usage)
        assert answer.logprobs == want.logprobs
        receipt = answer.receipt
        assert (receipt.worker, list(receipt.workers)) == ("memory:executor-0", ["memory:executor-0"])
        assert (list(receipt.routers), receipt.region, receipt.seed) == (["router:us"], "us", 7)
        assert receipt.cost_micros == want.receipt.cost_micros == 5 + 8 * 3
        assert receipt.currency == "USD"
        assert receipt.request_id == answer.accepted.request_id
        assert us.executor.submits[-1].request_id == receipt.request_id


async def test_a_chat_and_token_ids_are_passed_on_too(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, us):
        await lose(eu)
        said = await collect(eu.router.Chat(pb.ChatRequest(prompt=chat("hi"))))
        assert said.texts == {0: "hi"}
        ids = pb.GenerateRequest(token_ids=pb.TokenPrompt(token_ids=[104, 105]))
        assert (await ask(eu, request=ids)).texts == {0: "hi"}
        assert us.executor.submits[-1].tenant == ""


async def test_an_eu_only_tenant_is_refused_and_nothing_of_it_leaves(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, us):
        await ask(eu, "acme")
        await lose(eu)
        reason, _, error = await refusal(eu.router.Generate(text(), metadata=(("weir-tenant", "acme"),)))
        assert (reason, error.metadata["regions"]) == ("NO_WORKER", "eu")
        assert not touched(us)
        answer = await ask(eu, "zoo")
        assert answer.receipt.region == "us"
        assert us.executor.submits[0].tenant == "zoo"


async def test_where_a_request_may_go_is_kept_by_the_next_router_too(tmp_path: Path) -> None:
    """The next router has no rules of its own; its executor says that it is elsewhere."""
    async with two_routers(tmp_path) as (eu, us):
        us.fakes.workers["executor-0"].identity.place(region="jp")
        us.executor.crash.crash()
        await us.until(lambda: us.num_serving() == 2)
        us.executor.crash.revive()
        await us.until_serving()
        await us.until(lambda: us.fleet.snapshot().executors[0].traits.region == "jp")
        await lose(eu)
        await until_there(eu)
        routing = RoutingOptions(constraints=Constraints(regions=["us"]))
        reason, _, error = await refusal(eu.router.Generate(text(routing=routing)))
        assert (reason, error.metadata["regions"]) == ("NO_WORKER", "us")
        assert not us.executor.submits
        assert (await ask(eu)).receipt.region == "jp"


async def test_before_its_first_token_a_request_moves_there_and_back(tmp_path: Path) -> None:
    overflow = US.replace("probe", 'use = "overflow"\nprobe')
    async with two_routers(tmp_path, overflow) as (eu, us):
        eu.executor.running.clear()
        asked = asyncio.ensure_future(ask(eu))
        await eu.until(lambda: bool(eu.executor.submits))
        assert not us.executor.submits
        eu.executor.crash.crash()
        answer = await asked
        assert list(answer.receipt.workers) == ["memory:executor-0", "memory:executor-0"]
        assert list(answer.receipt.routers) == ["router:us"]
        eu.executor.crash.revive()
        eu.executor.running.set()
        await eu.until_serving()
        us.executor.refusal = Overloaded("full")
        eu.executor.refusal = Overloaded("full")
        assert (await refusal(eu.router.Generate(text())))[0] == "OVERLOADED"


async def test_a_pinned_revision_is_the_next_routers_too(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, us):
        await lose(eu)
        pinned = await ask(eu, request=text(model="bytes@r1"))
        assert pinned.receipt.model_version.revision == "r1"
        count = len(us.executor.submits)
        assert (await refusal(eu.router.Generate(text(model="bytes@r9"))))[0] == "NO_WORKER"
        assert len(us.executor.submits) == count


async def test_a_remote_refusal_keeps_its_words(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, _):
        await lose(eu)
        reason, _, error = await refusal(eu.router.Generate(text("x" * 5000)))
        assert reason == "PROMPT_TOO_LONG"
        assert error.metadata["tokens"] == "5000"


async def test_two_routers_that_know_each_other_go_round_in_no_circle(tmp_path: Path) -> None:
    async with two_routers(tmp_path, of_us=EU) as (eu, us):
        assert (await ask(eu)).kinds[-1] == "receipt"
        for one in (eu, us):
            await lose(one, "tokenizer-0", "postprocess-0")
        reason, _, _ = await refusal(eu.router.Generate(text(), timeout=10))
        assert reason in ("NO_WORKER", "WORKER_LOST")


async def test_what_has_come_through_many_is_passed_on_no_further(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, _):
        await lose(eu)
        for via, passed_on in ((MAX_ROUTERS - 1, True), (MAX_ROUTERS, False)):
            metadata = via_metadata(tuple(f"r{i}" for i in range(via - 1)), "last")
            stream = eu.router.Generate(text(), metadata=metadata)
            if passed_on:
                assert (await collect(stream)).receipt.region == "us"
            else:
                assert (await refusal(stream))[0] == "NO_WORKER"


async def test_one_that_says_it_is_elsewhere_is_not_believed(tmp_path: Path) -> None:
    wrong = US.replace('region = "us"', 'region = "eu"')
    async with two_routers(tmp_path, wrong + TENANTS, ready=False) as (eu, us):
        (worker,) = eu.fleet.externals.workers
        with pytest.raises(Away, match="says that it is in us, and not in eu"):
            await worker.probe()
        await lose(eu)
        assert (await refusal(eu.router.Generate(text(), metadata=(("weir-tenant", "acme"),))))[0] == "NO_WORKER"
        assert not touched(us)


async def test_a_client_that_leaves_ends_it_over_there(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (eu, us):
        await lose(eu)
        request, answer = text("hello"), Answer()
        request.stopping.Clear()
        request.stopping.ignore_eos = True
        call = eu.router.Generate(request)
        task = asyncio.create_task(collect(call, answer))
        await eu.until(lambda: "delta" in answer.kinds)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await us.until(lambda: not us.executor.live)
