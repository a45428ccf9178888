from __future__ import annotations

from unit.router.providers.making import chat, request
from weir.inference.v1.routing_pb2 import Constraints, ContinuationMode, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest, TokenPrompt
from weir_router.providers.remote_request import remote_request
from weir_router.regions import Residency
from weir_router.request import TextPrompt, TokenIdsPrompt


def test_all_that_the_client_said_is_said_on() -> None:
    fields = {"sampling": SamplingParameters(temperature=0.5, n=2), "stopping": StoppingConditions(stop=["x"])}
    common = {"priority": 3, "adapter": "law", "skip_special_tokens": False}
    wanted = request(TextPrompt("hi", False), seeded=True, **fields, **common)  # type: ignore[arg-type]
    sent = remote_request(wanted, "eu")
    assert sent == GenerateRequest(
        text="hi",
        add_special_tokens=False,
        sampling=SamplingParameters(temperature=0.5, n=2, seed=5),
        stopping=StoppingConditions(stop=["x"]),
        routing=RoutingOptions(constraints=Constraints()),
        priority=3,
        adapter="law",
        skip_special_tokens=False,
    )


def test_every_kind_of_prompt() -> None:
    ids = remote_request(request(TokenIdsPrompt([1, 2])), "")
    assert isinstance(ids, GenerateRequest)
    assert ids.token_ids == TokenPrompt(token_ids=[1, 2])
    told = remote_request(request(chat("hi")), "")
    assert isinstance(told, ChatRequest)
    assert told.prompt == chat("hi")


def test_a_seed_that_was_drawn_here_is_not_passed_on() -> None:
    assert not remote_request(request(), "").sampling.HasField("seed")


def test_the_next_router_keeps_it_at_home_where_it_is_home_itself() -> None:
    wanted = request(residency=Residency(frozenset({"eu"}), frozenset({"uk"})))
    assert remote_request(wanted, "eu").routing.constraints.regions == ["eu"]
    assert remote_request(wanted, "uk").routing.constraints.regions == ["eu", "uk"]
    assert not remote_request(request(), "eu").routing.constraints.regions


def test_of_its_routing_only_what_is_the_next_ones_business() -> None:
    own = RoutingOptions(session="s", idempotency_key="k", continuation=ContinuationMode.CONTINUATION_MODE_NONE)
    own.retain.seconds = own.hedge_after.seconds = 3
    sent = remote_request(request(routing=own), "").routing
    assert (sent.session, sent.continuation) == ("s", ContinuationMode.CONTINUATION_MODE_NONE)
    assert not sent.idempotency_key
    assert not sent.HasField("retain")
    assert not sent.HasField("hedge_after")
