"""Several models answer one request: its members are requests of their own, run by the one pipeline.

    cascade    ask ── unsure ──▶ ask ── unsure ──▶ ask, and take that
    hedge      ask ── no answer yet ──▶ ask another one beside it …         who is done first
    vote       ask all ──▶ so many say the same
    judgement  ask all ──▶ show their answers to all judges ──▶ most weight

Whoever is not needed any more is ended. When the plan's time is over, what has been answered counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.ensemble_pb2 import EnsembleOutcome, MemberRole
from weir.inference.v1.guide_pb2 import Choice, Guide
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import RunEnsembleResponse
from weir_chassis.clock import Clock
from weir_chassis.errors import DeadlineExceeded
from weir_router.ensembles.decisions import abstains, agreed, chosen_by, may_agree, question, turned, winner
from weir_router.ensembles.member import Member
from weir_router.ensembles.plan import Cascade, Hedge, Judgement, Plan, Step, Vote, most_requests
from weir_router.pipeline import Run
from weir_router.request import ClientRequest

# A number, and what a tokenizer may make of it.
_VERDICT_TOKENS = 8


class Ensembles:
    """`run` is the pipeline's."""

    def __init__(self, run: Run, clock: Clock):
        self._run, self._clock = run, clock

    async def answer(self, plan: Plan, request: ClientRequest, left_seconds: float | None) -> RunEnsembleResponse:
        """`left_seconds`: of the plan. Raises what the first member met when none has answered, DeadlineExceeded when
        none has in time.
        """
        expires_at = None if left_seconds is None else self._clock.monotonic() + left_seconds
        ensemble = _Ensemble(self._run, self._clock, request, most_requests(plan), expires_at)
        answer: Member | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(left_seconds):
                answer = await ensemble.follow(plan)
        return ensemble.response(answer)


@dataclass
class _Ensemble:
    """One plan under way. `members` are those that were asked, in order."""

    run: Run
    clock: Clock
    request: ClientRequest
    most_requests: int
    expires_at: float | None
    members: list[Member] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    async def follow(self, plan: Plan) -> Member | None:
        """The member whose answer is the plan's; None: there is none."""
        match plan:
            case Cascade(steps):
                return await self._cascade(steps)
            case Hedge(models, after):
                return await self._hedge(models, after)
            case Vote():
                return await self._vote(plan)
            case Judgement():
                return await self._judge(plan)

    def response(self, answer: Member | None) -> RunEnsembleResponse:
        done = [member for member in self.members if member.done]
        if not any(member.answered for member in done):
            failure = next((member.failure for member in done if member.failure is not None), None)
            raise failure or DeadlineExceeded("no member of the ensemble has answered in time")
        response = RunEnsembleResponse(
            outcome=EnsembleOutcome.ENSEMBLE_OUTCOME_UNDECIDED,
            members=[member.message() for member in done],
            usage=_sum([member.usage for member in done]),
        )
        if answer is not None:
            response.outcome = EnsembleOutcome.ENSEMBLE_OUTCOME_DECIDED
            response.text, response.finish_reason = answer.text, answer.finish_reason
        return response

    async def _cascade(self, steps: Sequence[Step]) -> Member | None:
        for step in steps:
            member = self._candidate(step.model, logprobs=step.min_mean_logprob is not None)
            await member.answer(self.run, self._left())
            if not member.answered:
                continue
            member.abstained = step is not steps[-1] and abstains(step, member.text, member.mean_logprob)
            if not member.abstained:
                return _chosen(member)
        return None

    async def _hedge(self, models: Sequence[str], after_seconds: float) -> Member | None:
        asked: list[Member] = []
        async with _tasks() as tasks:
            for model in models:
                asked.append(self._candidate(model))
                tasks.append(asyncio.create_task(asked[-1].answer(self.run, self._left())))
                await self._until_answered(asked, tasks, after_seconds if len(asked) < len(models) else None)
                if (first := next((one for one in asked if one.answered), None)) is not None:
                    return _chosen(first)
        return None

    async def _until_answered(
        self, asked: Sequence[Member], tasks: list[asyncio.Task[None]], seconds: float | None
    ) -> None:
        """Or until all of them have failed, or nothing has happened for so many seconds."""
        while tasks and not any(one.answered for one in asked):
            if not await _first_done(tasks, seconds):
                return

    async def _vote(self, plan: Vote) -> Member | None:
        voters = [self._candidate(model) for model in plan.models]
        async with aclosing(self._as_they_answer(voters)) as answering:
            async for _ in answering:
                answers = {index: voter.text for index, voter in enumerate(voters) if voter.answered}
                if (found := agreed(answers, plan.quorum)) is not None:
                    for index in found:
                        voters[index].chosen = True
                    return voters[found[0]]
                if not may_agree(answers, sum(not voter.done for voter in voters), plan.quorum):
                    return None
        return None

    async def _judge(self, plan: Judgement) -> Member | None:
        candidates = [self._candidate(model) for model in plan.candidates]
        await self._all(candidates)
        answered = [index for index, candidate in enumerate(candidates) if candidate.answered]
        if not answered:
            return None
        shown = [turned(answered, number) for number in range(len(plan.judges))]
        texts = [[candidates[index].text for index in order] for order in shown]
        judges = [self._judge_of(judge.model, each) for judge, each in zip(plan.judges, texts, strict=True)]
        await self._all(judges)
        found = [chosen_by(one.text, order) if one.answered else None for one, order in zip(judges, shown, strict=True)]
        best = winner({n: choice for n, choice in enumerate(found) if choice is not None}, plan.judges, plan.quorum)
        for judge, choice in zip(judges, found, strict=True):
            judge.abstained = judge.answered and choice is None
            judge.chosen = choice is not None and choice == best
        return None if best is None else _chosen(candidates[best])

    async def _all(self, members: Sequence[Member]) -> None:
        async with aclosing(self._as_they_answer(members)) as answering:
            async for _ in answering:
                pass

    async def _as_they_answer(self, members: Sequence[Member]) -> AsyncGenerator[None]:
        """All at once; returns after each of them that is done. Leaving it ends those that are not."""
        async with _tasks() as tasks:
            tasks += [asyncio.create_task(member.answer(self.run, self._left())) for member in members]
            while not all(member.done for member in members):
                await _first_done(tasks, None)
                yield

    def _candidate(self, model: str, *, logprobs: bool = False) -> Member:
        """Each draws by a seed of its own: the same model may be asked more than once."""
        sampling = SamplingParameters()
        sampling.CopyFrom(self.request.sampling)
        if self.members:
            sampling.seed = (sampling.seed + len(self.members)) % (1 << 64)
        if logprobs and not sampling.HasField("logprobs"):
            sampling.logprobs = 0
        return self._member(replace(self.request, model=model, sampling=sampling))

    def _judge_of(self, model: str, answers: Sequence[str]) -> Member:
        text = question(_asked(self.request), answers)
        prompt = ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text=text)])])
        numbers = [str(number) for number in range(1, len(answers) + 1)]
        sampling = SamplingParameters(temperature=0, n=1, seed=0, guide=Guide(choice=Choice(options=numbers)))
        stopping = StoppingConditions(max_tokens=_VERDICT_TOKENS)
        request = replace(self.request, model=model, prompt=prompt, sampling=sampling, stopping=stopping)
        return self._member(request, MemberRole.MEMBER_ROLE_JUDGE)

    def _member(self, request: ClientRequest, role: MemberRole.ValueType = MemberRole.MEMBER_ROLE_CANDIDATE) -> Member:
        routing = RoutingOptions()
        routing.CopyFrom(request.routing)
        for name in ("idempotency_key", "retain", "hedge_after"):
            routing.ClearField(name)
        if routing.constraints.HasField("max_cost_micros"):
            routing.constraints.max_cost_micros //= self.most_requests
        number = next(self.numbers)
        member = Member(replace(request, request_id=f"{request.request_id[:120]}.{number}", routing=routing), role)
        self.members.append(member)
        return member

    def _left(self) -> float | None:
        return None if self.expires_at is None else max(0.0, self.expires_at - self.clock.monotonic())


@asynccontextmanager
async def _tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Whatever is left in the list at the end is ended, and waited for."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_done(tasks: list[asyncio.Task[None]], seconds: float | None) -> bool:
    """Waits for one of them, so long at most; whether there was one. What is done is taken from the list."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        tasks.remove(task)
        task.result()
    return bool(done)


def _chosen(member: Member) -> Member:
    member.chosen = True
    return member


def _asked(request: ClientRequest) -> str:
    """What the user has said last."""
    assert isinstance(request.prompt, ChatPrompt), "ensembles answer chats"
    said = [message for message in request.prompt.messages if message.role == "user"] or request.prompt.messages
    return "\n".join(part.text for part in said[-1].content)


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        draft_tokens=sum(usage.draft_tokens for usage in usages),
        accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in usages),
    )
