"""Plans with scripted members; and through a whole router whose model says what it was asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from google.protobuf.duration_pb2 import Duration

from fakes.suite import suite
from weir.inference.v1 import ensemble_pb2 as pb
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.output_pb2 import FinishReason, Usage
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.stream_pb2 import Delta, OutputFinished, Receipt, TokenLogprob
from weir.router.v1.router_pb2 import RunEnsembleRequest, RunEnsembleResponse
from weir_chassis.clock import SystemClock
from weir_chassis.errors import DeadlineExceeded, NoWorker, WeirError
from weir_router.ensembles.ensembles import Ensembles
from weir_router.ensembles.plan import Cascade, Hedge, Judge, Judgement, Plan, Step, Vote
from weir_router.pipeline import Write
from weir_router.regions import NO_CLIENT
from weir_router.request import ClientRequest

DECIDED, UNDECIDED = pb.ENSEMBLE_OUTCOME_DECIDED, pb.ENSEMBLE_OUTCOME_UNDECIDED


@dataclass
class Script:
    """What each model says: a text, an error, or nothing until it is ended. `cancelled`: those that were."""

    says: dict[str, str | WeirError | None]
    logprob: float = -0.1
    asked: list[ClientRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        self.asked.append(request)
        says = self.says[request.model]
        if isinstance(says, WeirError):
            raise says
        if says is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(request.model)
        assert says is not None
        logprobs = [TokenLogprob(logprob=self.logprob)] if request.sampling.HasField("logprobs") else []
        for part in (says[:1], says[1:]):
            await asyncio.sleep(0)
            await write([Delta(text=part, logprobs=logprobs)])
        await write([OutputFinished(finish_reason=FinishReason.FINISH_REASON_STOP)])
        await write([Usage(prompt_tokens=3, completion_tokens=2), Receipt(request_id=request.request_id)])


def request(routing: RoutingOptions | None = None) -> ClientRequest:
    return ClientRequest(
        request_id="r",
        model="",
        prompt=ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text="Why?")])]),
        sampling=SamplingParameters(seed=5, n=1),
        stopping=StoppingConditions(),
        priority=2,
        tenant="acme",
        residency=NO_CLIENT,
        adapter="",
        skip_special_tokens=None,
        routing=routing or RoutingOptions(),
    )


async def answer(plan: Plan, script: Script, seconds: float | None = None) -> RunEnsembleResponse:
    return await Ensembles(script.run, SystemClock()).answer(plan, request(), seconds)


def models(response: RunEnsembleResponse) -> list[str]:
    return [member.model for member in response.members]


async def test_a_cascade_takes_the_first_that_is_sure() -> None:
    plan = Cascade([Step("small", None, ("not sure",)), Step("large", None, ()), Step("huge", None, ())])
    told = await answer(plan, Script({"small": "I am not sure", "large": "42", "huge": "43"}))
    assert (told.outcome, told.text, told.finish_reason) == (DECIDED, "42", FinishReason.FINISH_REASON_STOP)
    assert models(told) == ["small", "large"]
    assert [(member.abstained, member.chosen) for member in told.members] == [(True, False), (False, True)]
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (6, 4)


@pytest.mark.parametrize(("logprob", "asked"), [(-0.1, ["small"]), (-2.0, ["small", "large"])])
async def test_a_cascade_looks_at_how_likely_the_answer_was(logprob: float, asked: list[str]) -> None:
    script = Script({"small": "x", "large": "y"}, logprob)
    told = await answer(Cascade([Step("small", -1.0, ()), Step("large", -1.0, ())]), script)
    assert models(told) == asked
    assert told.outcome == DECIDED
    assert told.members[0].mean_logprob == pytest.approx(logprob)


async def test_a_cascade_goes_past_who_fails_and_its_last_is_taken_as_it_is() -> None:
    plan = Cascade([Step("gone", None, ()), Step("last", None, ("x",))])
    told = await answer(plan, Script({"gone": NoWorker("nobody"), "last": "x"}))
    assert (told.text, told.members[0].failure.message) == ("x", "nobody")
    with pytest.raises(NoWorker):
        await answer(plan, Script({"gone": NoWorker("nobody"), "last": NoWorker("nor here")}))


async def test_a_cascade_whose_last_fails_is_undecided_and_shows_what_there_is() -> None:
    plan = Cascade([Step("small", None, ("x",)), Step("last", None, ())])
    told = await answer(plan, Script({"small": "x", "last": NoWorker("nobody")}))
    assert (told.outcome, told.text, told.members[0].text) == (UNDECIDED, "", "x")


async def test_a_hedge_asks_the_next_when_nobody_has_answered_and_takes_who_is_first() -> None:
    script = Script({"slow": None, "quick": "done"})
    told = await answer(Hedge(["slow", "quick"], 0.01), script)
    assert (told.outcome, told.text, models(told)) == (DECIDED, "done", ["quick"])
    assert script.cancelled == ["slow"]
    alone = Script({"quick": "done", "other": "never"})
    assert (await answer(Hedge(["quick", "other"], 60.0), alone)).text == "done"
    assert len(alone.asked) == 1


async def test_a_hedge_does_not_wait_for_who_has_failed() -> None:
    told = await answer(Hedge(["gone", "well"], 60.0), Script({"gone": NoWorker("nobody"), "well": "x"}))
    assert (told.text, models(told)) == ("x", ["gone", "well"])


async def test_a_vote_is_over_when_enough_say_the_same() -> None:
    script = Script({"a": "Forty-two.", "b": "forty two", "c": None})
    told = await answer(Vote(["a", "b", "c"], 2), script)
    assert (told.outcome, told.text) == (DECIDED, "Forty-two.")
    assert [member.chosen for member in told.members] == [True, True]
    assert script.cancelled == ["c"]
    assert len({one.sampling.seed for one in script.asked}) == 3


async def test_a_vote_that_cannot_be_won_any_more_is_over() -> None:
    script = Script({"a": "one", "b": "two", "c": NoWorker("nobody"), "d": None})
    told = await answer(Vote(["a", "b", "c", "d"], 3), script)
    assert (told.outcome, told.text) == (UNDECIDED, "")
    assert script.cancelled == ["d"]


async def test_judges_choose_by_weight_and_see_the_answers_in_turned_order() -> None:
    """Each says "1": the first judge means the first candidate, the second one the second."""
    script = Script({"a": "good", "b": "better", "j": "1", "k": "1", "l": "hm"})
    plan = Judgement(["a", "b"], [Judge("j", 1.0), Judge("k", 3.0), Judge("l", 9.0)], 2)
    told = await answer(plan, script)
    assert (told.outcome, told.text) == (DECIDED, "better")
    assert [(member.role, member.chosen, member.abstained) for member in told.members] == [
        (pb.MEMBER_ROLE_CANDIDATE, False, False),
        (pb.MEMBER_ROLE_CANDIDATE, True, False),
        (pb.MEMBER_ROLE_JUDGE, False, False),
        (pb.MEMBER_ROLE_JUDGE, True, False),
        (pb.MEMBER_ROLE_JUDGE, False, True),
    ]
    judge = next(one for one in script.asked if one.model == "j")
    assert list(judge.sampling.guide.choice.options) == ["1", "2"]
    assert isinstance(judge.prompt, ChatPrompt)
    assert "Why?" in judge.prompt.messages[0].content[0].text


async def test_too_few_judges_decide_nothing() -> None:
    script = Script({"a": "x", "b": "y", "j": "1", "k": NoWorker("nobody")})
    told = await answer(Judgement(["a", "b"], [Judge("j", 1.0), Judge("k", 1.0)], 2), script)
    assert told.outcome == UNDECIDED


async def test_when_the_time_is_over_what_was_answered_counts() -> None:
    script = Script({"a": "x", "b": None})
    told = await answer(Vote(["a", "b"], 2), script, 0.05)
    assert (told.outcome, models(told), script.cancelled) == (UNDECIDED, ["a"], ["b"])
    with pytest.raises(DeadlineExceeded):
        await answer(Vote(["b"], 1), Script({"b": None}), 0.05)


async def test_who_ends_the_call_ends_its_members() -> None:
    script = Script({"a": None, "b": None})
    task = asyncio.create_task(answer(Vote(["a", "b"], 2), script))
    while len(script.asked) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(script.cancelled) == ["a", "b"]


async def test_all_members_together_cost_what_one_request_may() -> None:
    script = Script({"a": "x", "b": "x", "c": "x"})
    routing = RoutingOptions(session="s", idempotency_key="k", retain=Duration(seconds=9))
    routing.constraints.CopyFrom(Constraints(max_cost_micros=100, min_quality=0.5))
    await Ensembles(script.run, SystemClock()).answer(Vote(["a", "b", "c"], 3), request(routing), None)
    asked = script.asked[0].routing
    assert asked == RoutingOptions(session="s", constraints=Constraints(max_cost_micros=33, min_quality=0.5))
    assert len({one.request_id for one in script.asked}) == 3


def ensemble(plan: pb.EnsemblePlan, text: str = "hello", **sampling: int) -> RunEnsembleRequest:
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text=text)])])
    return RunEnsembleRequest(plan=plan, prompt=prompt, sampling=SamplingParameters(**sampling))  # type: ignore[arg-type]


async def test_a_vote_and_a_cascade_through_the_router() -> None:
    async with suite() as running:
        vote = pb.EnsemblePlan(vote=pb.Vote(models=["bytes", "bytes", "other"]), deadline=Duration(seconds=30))
        told = await running.router.RunEnsemble(ensemble(vote))
        assert (told.outcome, told.text) == (DECIDED, "hello")
        assert {member.receipt.worker for member in told.members if member.chosen} == {"memory:executor-0"}
        steps = [pb.CascadeStep(model="bytes", abstain_markers=["ell"]), pb.CascadeStep(model="bytes@r1")]
        told = await running.router.RunEnsemble(ensemble(pb.EnsemblePlan(cascade=pb.Cascade(steps=steps))))
        assert [(member.text, member.abstained, member.chosen) for member in told.members] == [
            ("hello", True, False),
            ("hello", False, True),
        ]
