from __future__ import annotations

from dataclasses import replace

from unit.router.test_externals_policy import external
from unit.router.views import DOWN, executor, fleet, tokenizer, version
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_chassis.clock import SystemClock
from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import Price
from weir_router.journey import Journey
from weir_router.models.constraints import Offer
from weir_router.models.offers import Wish, offers
from weir_router.models.target import Target
from weir_router.regions import Residency
from weir_router.request import ClientRequest, EncodedPrompt, TextPrompt

PRICE = Price(1_000_000, 0, 1_000_000)
FLEET = fleet(
    executor("a", price=PRICE, region="eu"),
    executor("b", revision="r2", adapters={"law": "f1"}),
    executor("c", revision="r2", state=DOWN),
    tokenizers=(tokenizer("t"), tokenizer("u", revision="r2")),
)


def request(adapter: str = "", max_tokens: int = 5) -> ClientRequest:
    return ClientRequest(
        request_id="r",
        model="",
        prompt=TextPrompt("x", None),
        sampling=SamplingParameters(n=2),
        stopping=StoppingConditions(max_tokens=max_tokens),
        priority=0,
        tenant="",
        residency=Residency(None),
        adapter=adapter,
        skip_special_tokens=None,
    )


def wish(target: Target, *, held: Version | None = None, prompt_tokens: int = 10) -> Wish:
    prompt = None if held is None else EncodedPrompt(held, [1] * prompt_tokens, b"", 16)
    return Wish(target, quality=0.5, prompt=prompt, prompt_tokens=prompt_tokens, waited_seconds=1.0)


def told(
    wanted: Wish, asked: ClientRequest, cached: dict[str, int] | None = None, snapshot: FleetSnapshot = FLEET
) -> list[Offer]:
    journey = Journey(asked, SystemClock(), started_at=0.0, expires_at=None)
    return offers(snapshot, wanted, journey, lambda demand: replace(demand, cached_tokens=cached or {}))


def test_each_worker_that_may_take_it_makes_an_offer() -> None:
    target = Target("m")
    first, second = told(wish(target), request())
    assert (first.worker, first.revision, first.cost_micros, first.quality, first.region) == ("a", "r1", 20, 0.5, "eu")
    assert (second.worker, second.revision, second.cost_micros, second.region) == ("b", "r2", None, "")
    assert first.ttft_seconds > 1.0


def test_only_workers_of_the_revision_and_of_the_tokens() -> None:
    assert [offer.worker for offer in told(wish(Target("m", "r2")), request())] == ["b"]
    assert [offer.worker for offer in told(wish(Target("m"), held=version("r1")), request())] == ["a"]


def test_only_workers_that_have_the_adapter() -> None:
    assert [offer.worker for offer in told(wish(Target("m")), request("law"))] == ["b"]
    assert not told(wish(Target("m")), request("tax"))


def test_nobody_offers_what_does_not_fit_or_is_not_there() -> None:
    assert not told(wish(Target("m"), prompt_tokens=99), request())
    assert not told(wish(Target("other")), request())


def test_who_holds_the_prompt_would_begin_sooner() -> None:
    first, held = (told(wish(Target("m", "r1")), request(), cached)[0] for cached in ({}, {"a": 9}))
    assert held.ttft_seconds - 1.0 < (first.ttft_seconds - 1.0) / 5
    assert held.cost_micros == first.cost_micros


def test_workers_outside_the_suite_make_offers_too() -> None:
    """Beside executors, and alone: then the prompt may have a token for each of its bytes, of which there is one."""
    provider = external(abilities=None, price=PRICE, region="us")
    beside, alone = replace(FLEET, externals=(provider,)), FleetSnapshot(externals=(provider,))
    assert [offer.worker for offer in told(wish(Target("m"), held=version("r1")), request(), snapshot=beside)] == [
        "a",
        "provider:p",
    ]
    (only,) = told(wish(Target("m")), request(), snapshot=alone)
    assert (only.worker, only.revision, only.region, only.cost_micros) == ("provider:p", "theirs", "us", 4 + 10)
    assert not told(wish(Target("m", "r9")), request(), snapshot=alone)
