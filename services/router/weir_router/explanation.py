"""What would be chosen for a request, and why: the choices themselves, with nothing reserved and nothing executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from weir.router.v1 import fleet_pb2 as pb
from weir_chassis.clock import Clock
from weir_chassis.durations import duration
from weir_chassis.errors import WeirError
from weir_router.demand import demand_of
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, ExternalView
from weir_router.journey import Journey
from weir_router.mapping import worker_score
from weir_router.models.models import Models
from weir_router.models.target import Target
from weir_router.policies import eligible, externals
from weir_router.policies.choose import Choice, choose_tokenizer, prefill_workers
from weir_router.policies.forecast import Forecast, forecasts
from weir_router.policies.policy import Candidate, Demand, Scored
from weir_router.regions import Residency
from weir_router.request import ClientRequest, EncodedPrompt, TokenIdsPrompt
from weir_router.routing import Routing


class Explainer:
    """`disaggregate_tokens`: as executions have it."""

    def __init__(self, routing: Routing, models: Models, disaggregate_tokens: int, clock: Clock):
        self._routing, self._models = routing, models
        self._disaggregate_tokens, self._clock = disaggregate_tokens, clock

    async def explain(self, request: ClientRequest, left_seconds: float | None) -> pb.ExplainRouteResponse:
        """Raises what the request would be refused with. Its prompt is tokenized, and that is all that it costs."""
        now = self._clock.monotonic()
        expires_at = None if left_seconds is None else now + left_seconds
        journey = Journey(request, self._clock, started_at=now, expires_at=expires_at)
        self._models.check(journey)
        return self._explain(journey, await self._models.encode(journey))

    def _explain(self, journey: Journey, prompt: EncodedPrompt) -> pb.ExplainRouteResponse:
        """All of it from one snapshot: nothing here waits."""
        assert journey.target is not None, "a prompt is encoded for a target"
        residency, snapshot = journey.residency, self._routing.fleet.snapshot()
        demand = demand_of(journey, prompt)
        ranked = self._routing.rank(demand, residency)
        choice = self._routing.choose(demand, residency)
        able = prefill_workers(snapshot.within(residency), demand, choice, self._disaggregate_tokens)
        choice = self._routing.choose_prefill(choice, demand, able)
        forecast = _forecast(snapshot, self._routing.informed(demand), choice, ranked)
        return pb.ExplainRouteResponse(
            model_version=prompt.version.message(),
            model_rule=_model_rule(journey.target, journey.request.model),
            policy=choice.policy,
            prompt_tokens=prompt.num_tokens,
            executor=choice.executor,
            prefill_executor=choice.prefill or "",
            tokenizer=_tokenizer(snapshot.within(residency), journey, journey.target, prompt),
            postprocessor=choice.postprocessor,
            scores=map(worker_score, ranked),
            excluded=[pb.Exclusion(worker=w, reason=why) for w, why in _left_out(snapshot, demand, residency, ranked)],
            ttft=duration(forecast.ttft_seconds),
            cost_micros=forecast.cost_micros,
        )


def _forecast(snapshot: FleetSnapshot, informed: Demand, choice: Choice, ranked: Sequence[Scored]) -> Forecast:
    """When whoever computes the prompt would have its first token, at that worker's price."""
    candidates = [scored.candidate for scored in ranked]
    if choice.prefill:
        candidates += [Candidate(view, view.model) for view in snapshot.executors if view.model]
    found = zip(candidates, forecasts(candidates, informed), strict=True)
    return next(forecast for candidate, forecast in found if candidate.address == choice.first_executor)


def _tokenizer(snapshot: FleetSnapshot, journey: Journey, target: Target, prompt: EncodedPrompt) -> str:
    """By the choice that was made for the prompt. Empty: token ids need none."""
    if isinstance(journey.request.prompt, TokenIdsPrompt):
        return ""
    try:
        tokenizer, _ = choose_tokenizer(
            snapshot, target.model, turn=journey.turn, adapter=prompt.adapter, revision=target.revision
        )
    except WeirError:
        return ""  # it has gone since
    return tokenizer.address


def _model_rule(target: Target, named: str) -> str:
    rules = [
        f"alias {target.alias}" if target.alias else "",
        f"arm {target.arm}" if target.arm else "",
        f"selected as {target.selected_by}" if target.selected_by else "",
    ]
    return ", ".join(filter(None, rules)) or (f"named {named}" if named else "the only model there is")


def _left_out(
    snapshot: FleetSnapshot, demand: Demand, residency: Residency, ranked: Sequence[Scored]
) -> Iterator[tuple[str, str]]:
    """Workers that were not ranked, each with the first of the reasons."""
    considered = {scored.candidate.address for scored in ranked}
    reasons = {**dict(eligible.exclusions(snapshot, demand)), **dict(externals.exclusions(snapshot, demand))}
    views: list[ExecutorView | ExternalView] = [*snapshot.executors, *snapshot.externals]
    for view in views:
        if view.address not in considered:
            yield view.address, _reason(view, residency, reasons)


def _reason(view: ExecutorView | ExternalView, residency: Residency, reasons: Mapping[str, str]) -> str:
    region = view.traits.region
    if not residency.allows(region):
        return f"it is in {region or 'no region that anybody has said'}, and the request must stay in {residency}"
    if view.address in reasons:
        return reasons[view.address]
    if not residency.at_home.allows(region):
        return f"it is in {region}, where the request goes only when nobody at home can take it"
    return "it does not keep the request's limits"
