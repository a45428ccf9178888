"""Two revisions of the demo model, each with an executor and a tokenizer of its own, behind one router with aliases."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos.churn.fleet import start_python
from e2e.conftest import Stack, json_lines, run_weir
from servers import free_ports
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.fleet_pb2 import AliasTarget, GetFleetRequest
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import InvalidArgument, WeirError
from weir_client.answer import Answer, collect
from weir_client.client import Client

_PATIENCE_SECONDS = 90.0
_DEMO = Path(__file__).parents[2] / "deploy/models/demo"
_GREEDY = SamplingParameters(temperature=0)
_SHORT = StoppingConditions(max_tokens=8, ignore_eos=True)
_CONFIG = """
[models.demo]
quality = 0.5

[[aliases.ab.targets]]
model = "demo"
revision = "{first}"
arm = "old"

[[aliases.ab.targets]]
model = "demo"
revision = "next"
arm = "new"

[[aliases.rolled.targets]]
model = "demo"
revision = "{first}"

[[aliases.rolled.targets]]
model = "demo"
revision = "next"
canary = {{ min_requests = 5 , steps = [] }}

[[aliases.shadowed.targets]]
model = "demo"
revision = "{first}"

[aliases.shadowed.shadow]
model = "demo"
revision = "next"
sample = 1.0
tokens_per_minute = 1000000
deadline_seconds = 5
"""


@dataclass
class Router:
    address: str
    metrics: str
    # Of the executor that holds the revision "next".
    next_pid: int
    state: Path

    def counted(self, metric: str) -> float:
        """The sample of this name and these labels, as Prometheus writes it; 0 before it was first counted."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(metric)), 0.0)

    async def target(self, alias: str, revision: str) -> AliasTarget:
        async with open_channel(self.address) as channel:
            fleet = await FleetServiceStub(channel).GetFleet(GetFleetRequest(), timeout=10)
        targets = next(one.targets for one in fleet.aliases if one.name == alias)
        return next(target for target in targets if target.revision == revision)

    async def until_failed(self, alias: str, revision: str, requests: int) -> AliasTarget:
        """A client knows that its deadline has passed a moment before the router does."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (target := await self.target(alias, revision)).failed_requests < requests:
                await asyncio.sleep(0.05)
        return target

    async def until(self, metric: str, value: float) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await asyncio.to_thread(self.counted, metric) < value:
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def router(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """Beside the stack's own: it knows the stack's workers, and two of its own that hold another revision."""
    with _second_revision(stack, tmp_path_factory.mktemp("models")) as running:
        yield running


@contextmanager
def _second_revision(stack: Stack, directory: Path) -> Iterator[Router]:
    executor, tokenizer, router, metrics = free_ports(4)
    config = directory / "routing.toml"
    config.write_text(_CONFIG.format(first=asyncio.run(_revision(stack))))
    source = f'{{"demo": {{"path": "{_DEMO}", "revision": "next"}}}}'
    with ExitStack() as running:

        def start(name: str, port: int, **settings: object) -> int:
            env = {f"WEIR_{name}_{key}".upper(): str(value) for key, value in {"port": port, **settings}.items()}
            process = start_python(f"weir_{name}", env, directory / f"{name}.log")
            running.callback(process.wait, 60)
            running.callback(process.kill)
            return process.pid

        pid = start("executor", executor, model_dir=_DEMO, model="demo", revision="next", num_threads=1)
        start("tokenizer", tokenizer, models=source)
        start(
            "router",
            router,
            metrics_port=metrics,
            executors=",".join([stack.addresses("executor")[0], f"127.0.0.1:{executor}"]),
            tokenizers=",".join([*stack.addresses("tokenizer"), f"127.0.0.1:{tokenizer}"]),
            postprocessors=",".join(stack.addresses("postprocess")),
            config_file=config,
        )
        found = Router(f"127.0.0.1:{router}", f"127.0.0.1:{metrics}", pid, directory)
        asyncio.run(_until_whole(found))
        yield found


async def _revision(stack: Stack) -> str:
    async with Client(stack.router) as client:
        (model,) = await client.models()
    return model.model_version.revision


async def _until_whole(router: Router) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS), Client(router.address) as client:
        while True:
            try:
                if sum(model.healthy_workers for model in await client.models(timeout=5)) == 2:
                    await ask(client, "ab", "both", revision="next")
                    return
            except WeirError:
                pass
            await asyncio.sleep(0.1)


async def ask(client: Client, model: str, prompt: str, *, session: str = "", revision: str = "") -> Answer:
    events = client.generate(
        prompt,
        model=f"demo@{revision}" if revision else model,
        sampling=_GREEDY,
        stopping=_SHORT,
        timeout=30,
        routing=RoutingOptions(session=session),
    )
    return await collect(events)


async def test_sessions_keep_their_arm_and_each_arm_is_its_revision(router: Router) -> None:
    async with Client(router.address) as client:
        arms: dict[str, set[tuple[str, str]]] = {}
        for session in [f"s{number}" for number in range(12)] * 2:
            receipt = (await ask(client, "ab", "Once upon a time", session=session)).receipt
            arms.setdefault(session, set()).add((receipt.arm, receipt.model_version.revision))
    assert all(len(found) == 1 for found in arms.values())
    pairs = set.union(*arms.values())
    assert {arm for arm, _ in pairs} == {"old", "new"}
    assert ("new", "next") in pairs
    assert ("old", "next") not in pairs


async def test_a_shadow_leaves_the_answer_alone_and_draws_the_same(router: Router) -> None:
    """The two revisions are one model, so that what the shadow says is what was said."""
    async with Client(router.address) as client:
        plain = await ask(client, "demo", "The river", revision="next")
        shadowed = await ask(client, "shadowed", "The river")
    assert shadowed.text == plain.text
    assert shadowed.receipt.model_version.revision != "next"
    await router.until('weir_router_shadow_requests_total{alias="shadowed",end="answered"}', 1)
    assert router.counted('weir_router_shadow_token_agreement_sum{alias="shadowed"}') == 1.0


def test_aliases_and_constraints_by_the_command(router: Router) -> None:
    listed = run_weir(router.state, "models", "--router", router.address)
    assert "ab  alias of demo@" in listed.stdout
    told = run_weir(
        router.state,
        "generate",
        "hi",
        "-m",
        "ab",
        "--session",
        "s",
        "--json",
        "--router",
        router.address,
        "--min-quality",
        "0.5",
        "--max-tokens",
        "2",
    )
    receipt = json_lines(told.stdout)[-1]["receipt"]
    assert isinstance(receipt, dict)
    assert receipt["alias"] == "ab"
    refused = run_weir(router.state, "generate", "hi", "-m", "ab", "--min-quality", "0.9", "--router", router.address)
    assert refused.returncode != 0
    assert "min_quality (it is rated 0.5)" in refused.stderr


async def test_who_is_over_budget_is_refused_with_the_nearest_offer(router: Router) -> None:
    routing = RoutingOptions()
    routing.constraints.max_cost_micros = 10**9
    async with Client(router.address) as client:
        with pytest.raises(InvalidArgument) as caught:
            await collect(client.generate("hi", model="ab", routing=routing, timeout=30))
    assert caught.value.metadata["constraints"] == "max_cost_micros"
    assert caught.value.metadata["nearest_model"] == "demo"


async def test_a_canary_that_hangs_is_rolled_back_and_a_shadow_that_does_is_not_noticed(router: Router) -> None:
    """Last: the executor does not come back."""
    async with Client(router.address) as client:
        os.kill(router.next_pid, signal.SIGSTOP)
        assert (await ask(client, "shadowed", "The river")).outputs[0].finished is not None
        waited = [_ask_in_time(client, f"s{number}") for number in range(30)]
        failed = (await asyncio.gather(*waited)).count(False)
        told = await router.until_failed("rolled", "next", failed)
        assert (told.weight, told.weight_now) == (1.0, 0.0)
        assert told.reason.startswith("error rate")
        for number in range(5):
            receipt = (await ask(client, "rolled", "Once", session=f"t{number}")).receipt
            assert receipt.model_version.revision != "next"
    await router.until('weir_router_shadow_requests_total{alias="shadowed",end="failed"}', 1)


async def _ask_in_time(client: Client, session: str) -> bool:
    """Whether it is answered in so little time."""
    routing = RoutingOptions(session=session)
    try:
        await collect(client.generate("Once", model="rolled", stopping=_SHORT, timeout=4.0, routing=routing))
    except WeirError:
        return False
    return True
