"""Where requests may go: the rules by themselves, and a whole router that never gets past them."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weir_router
from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from unit.router.views import executor, fleet, postprocessor, tokenizer
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import NoWorker, PermissionDenied
from weir_router.regions import NO_CLIENT, Residency, ResidencyViolated, TenantRegions, residency
from weir_router.routing_config import parse

EU, US = frozenset({"eu"}), frozenset({"us"})
_regions = st.frozensets(st.sampled_from(["eu", "us", "uk", "jp"]), min_size=1)
_tenants = st.builds(TenantRegions, st.none() | _regions, st.just(frozenset()) | _regions)


# The rules.


@given(_tenants, st.just(frozenset()) | _regions, st.sampled_from(["eu", "us", "uk", "jp", "", "mars"]))
def test_nothing_is_allowed_that_either_tenant_or_request_forbids(
    own: TenantRegions, wanted: frozenset[str], region: str
) -> None:
    try:
        may = residency({"acme": own}, "acme", wanted)
    except PermissionDenied:
        assert own.regions is not None
        assert not (own.regions | own.fallback) & wanted
        return
    by_tenant = own.regions is None or region in own.regions | own.fallback
    by_request = not wanted or region in wanted
    assert may.allows(region) == (by_tenant and by_request)


def test_a_tenant_without_an_entry_has_that_of_the_others() -> None:
    rules = {"acme": TenantRegions(EU), "*": TenantRegions(US)}
    assert residency(rules, "acme", frozenset()) == Residency(EU)
    assert residency(rules, "zoo", frozenset()) == residency(rules, "", frozenset()) == Residency(US)
    assert residency({}, "zoo", frozenset()) == NO_CLIENT


def test_a_request_for_the_fallback_alone_is_at_home_there() -> None:
    assert residency({"acme": TenantRegions(EU, US)}, "acme", US) == Residency(US)


def test_regions_that_the_tenant_may_not_use_are_refused_with_those_that_it_may() -> None:
    with pytest.raises(PermissionDenied) as caught:
        residency({"acme": TenantRegions(EU, frozenset({"uk"}))}, "acme", US)
    assert caught.value.metadata == {"regions": "eu,uk"}


def test_a_worker_of_which_nobody_knows_where_it_is_is_nowhere() -> None:
    with pytest.raises(ResidencyViolated):
        Residency(EU).require("e", "")
    NO_CLIENT.require("e", "")


def test_the_fallback_is_looked_at_when_nobody_is_at_home() -> None:
    asked: list[Residency] = []

    def decide(place: Residency) -> str:
        asked.append(place)
        if not place.allows("us"):
            raise NoWorker("nobody")
        return "us"

    assert Residency(EU, US).find(decide) == "us"
    assert asked == [Residency(EU), Residency(EU, US)]
    with pytest.raises(NoWorker) as caught:
        Residency(EU).find(decide)
    assert caught.value.metadata == {"regions": "eu"}
    assert caught.value.message == "nobody (in eu)"


def test_a_snapshot_is_confined_for_every_kind_of_worker() -> None:
    whole = fleet(
        executor("e1", region="eu"),
        executor("e2", region="us"),
        executor("e3"),
        tokenizers=(tokenizer("t1", region="us"), tokenizer("t2", region="eu")),
        postprocessors=(postprocessor("p1", region="eu"), postprocessor("p2")),
    )
    at_home = whole.within(Residency(EU))
    kinds = (at_home.executors, at_home.tokenizers, at_home.postprocessors)
    assert [[worker.address for worker in kind] for kind in kinds] == [["e1"], ["t2"], ["p1"]]
    assert whole.within(NO_CLIENT) is whole


def test_a_residency_is_made_by_the_rules_alone() -> None:
    """Whoever else makes one could make any."""
    makers = set()
    for path in Path(weir_router.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Residency":
                makers.add(path.name)
    assert makers == {"regions.py"}


def test_the_file_names_tenants() -> None:
    config = parse('[tenants.acme]\nregions = ["eu"]\nfallback_regions = ["uk"]\n[tenants.zoo]')
    assert config.tenant_regions == {
        "acme": TenantRegions(EU, frozenset({"uk"})),
        "zoo": TenantRegions(),
    }


@pytest.mark.parametrize("text", ["regions = []", 'regions = [""]', 'fallback_regions = ["eu"]', "regions = [1]"])
def test_a_wrong_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"tenants\.acme"):
        parse(f"[tenants.acme]\n{text}")


# A whole router with workers of every kind in two regions. What the second region is given is looked at in its workers.

RULES = """
[tenants.acme]
regions = ["eu"]
[tenants.zoo]
regions = ["eu"]
fallback_regions = ["us"]
"""


@asynccontextmanager
async def two_regions(tmp_path: Path) -> AsyncIterator[Suite]:
    """Workers 0 of each kind are in eu, workers 1 in us."""
    rules = tmp_path / "routing.toml"
    rules.write_text(RULES)
    async with suite(
        executors=[FakeExecutor(), FakeExecutor()],
        tokenizers=[FakeTokenizer(), FakeTokenizer()],
        postprocessors=[FakePostprocess(), FakePostprocess()],
        regions=("eu", "us"),
        config_file=rules,
    ) as running:
        yield running


def touched(running: Suite, index: int) -> bool:
    fakes = running.fakes
    executor = fakes.executors[index]
    return bool(
        executor.submits or executor.embeds or fakes.tokenizers[index].calls or fakes.postprocessors[index].opens
    )


def request(*regions: str) -> pb.GenerateRequest:
    routing = RoutingOptions(constraints=Constraints(regions=regions))
    return pb.GenerateRequest(text="secret", stopping=StoppingConditions(max_tokens=4), routing=routing)


async def ask(running: Suite, tenant: str, *regions: str) -> Answer:
    return await collect(running.router.Generate(request(*regions), metadata=(("weir-tenant", tenant),)))


async def test_all_of_a_tenants_requests_stay_in_its_region(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as running:
        for _ in range(8):
            assert (await ask(running, "acme")).receipt.region == "eu"
        await running.router.Embed(
            pb.EmbedRequest(inputs=[pb.EmbedInput(text="x")]), metadata=(("weir-tenant", "acme"),)
        )
        assert not touched(running, 1)
        assert {(await ask(running, "")).receipt.region for _ in range(8)} == {"eu", "us"}


@pytest.mark.parametrize("lost", ["executor-0", "tokenizer-0", "postprocess-0"])
async def test_a_region_that_has_lost_a_kind_of_worker_refuses_and_sends_nothing_elsewhere(
    tmp_path: Path, lost: str
) -> None:
    async with two_regions(tmp_path) as running:
        running.fakes.workers[lost].drain()
        await running.until(lambda: running.num_serving() == 5)
        stream = running.router.Generate(request(), metadata=(("weir-tenant", "acme"),))
        reason, _, error = await refusal(stream)
        assert (reason, error.metadata["regions"]) == ("NO_WORKER", "eu")
        assert not touched(running, 1)
        answer = await ask(running, "zoo")
        answer.check_complete()
        assert touched(running, 1)


async def test_a_worker_lost_before_its_first_token_is_replaced_only_where_that_is_allowed(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as running:
        running.executor.running.clear()
        stream = running.router.Generate(request(), metadata=(("weir-tenant", "acme"),))
        acme, zoo = asyncio.ensure_future(refusal(stream)), asyncio.ensure_future(ask(running, "zoo"))
        await running.until(lambda: len(running.executor.submits) == 2)
        assert not touched(running, 1)
        running.executor.crash.crash()
        (reason, _, _), answer = await asyncio.gather(acme, zoo)
        assert reason == "WORKER_LOST"
        assert answer.receipt.region == "us"
        assert [submit.tenant for submit in running.fakes.executors[1].submits] == ["zoo"]


async def test_a_request_narrows_where_it_may_go_and_never_widens_it(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as running:
        assert {(await ask(running, "", "us")).receipt.region for _ in range(4)} == {"us"}
        assert {(await ask(running, "acme", "us", "eu")).receipt.region for _ in range(4)} == {"eu"}
        stream = running.router.Generate(request("us"), metadata=(("weir-tenant", "acme"),))
        reason, _, error = await refusal(stream)
        assert (reason, error.metadata["regions"]) == ("PERMISSION_DENIED", "eu")


async def test_a_worker_elsewhere_is_out_of_reach_whatever_was_decided(tmp_path: Path) -> None:
    """As if a policy had chosen wrongly: the link is not given out."""
    async with two_regions(tmp_path) as running:
        fleet = running.fleet
        doors = {"executor": fleet.executor, "postprocess": fleet.postprocessor, "tokenizer": fleet.tokenizer}
        for kind, reach in doors.items():
            reach(f"memory:{kind}-0", Residency(EU))
            with pytest.raises(ResidencyViolated, match=f"memory:{kind}-1 is in us"):
                reach(f"memory:{kind}-1", Residency(EU))
