"""Shadow traffic: some of an alias' requests are asked again of another target, after they were answered.

    request ──▶ the pipeline ──▶ client                       … is over
                     └─ its tokens, noted ──▶ within budget? ──▶ the shadow's own pipeline ──▶ compared, and dropped

It cannot delay the real request, which is over when it begins; it cannot fail it, for nobody waits for it. It runs at
the lowest priority, as another tenant than the client, with a deadline of its own, and is asked for no more tokens than
the client was given. It goes nowhere that the request itself might not have gone. It is counted apart from all else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.inference.v1.stream_pb2 import Delta, Receipt
from weir_chassis.background import Background
from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError
from weir_chassis.telemetry import get_logger
from weir_router.delivery import Event
from weir_router.keeping import NOT_KEPT
from weir_router.models.config import ShadowTable
from weir_router.models.metrics import ModelMetrics
from weir_router.models.outcome import End, outcome_of
from weir_router.models.shadow_budget import ShadowBudget
from weir_router.models.sticky import sampled
from weir_router.pipeline import Run, Write
from weir_router.request import ClientRequest
from weir_router.routing import Routing

_LOWEST_PRIORITY: Final = -100


@dataclass(slots=True)
class Answered:
    """What a request has been given. `first_delta_at`: monotonic seconds."""

    clock: Clock
    token_ids: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt = field(default_factory=Receipt)
    first_delta_at: float | None = None

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delta):
                self.token_ids[event.output_index] += event.token_ids
                if self.first_delta_at is None:
                    self.first_delta_at = self.clock.monotonic()
            elif isinstance(event, Usage):
                self.usage = event
            elif isinstance(event, Receipt):
                self.receipt = event

    @property
    def longest(self) -> int:
        """Tokens of the longest output."""
        return max(map(len, self.token_ids.values()), default=0)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What is to be asked again, and what was answered. `tokens`: that it may take at most."""

    alias: str
    table: ShadowTable
    request: ClientRequest
    real: Answered
    tokens: int


class Shadows:
    """`run` is the pipeline's, for clients; `aside` is that of a pipeline whose places and counts are its own."""

    def __init__(
        self,
        run: Run,
        aside: Run,
        routing: Routing,
        *,
        clock: Clock,
        background: Background,
        metrics: ModelMetrics,
    ):
        self._run, self._aside, self._routing = run, aside, routing
        self._clock, self._background, self._metrics = clock, background, metrics
        self._budgets: dict[str, tuple[ShadowTable, ShadowBudget]] = {}  # by alias; of those that the file has

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        """As the pipeline does."""
        if not self._may_be_shadowed(request):
            await self._run(request, write, left_seconds)
            return
        answered = Answered(self._clock)

        async def write_and_note(events: Sequence[Event]) -> None:
            await write(events)
            answered.note(events)

        await self._run(request, write_and_note, left_seconds)
        self._follow(request, answered)

    def _may_be_shadowed(self, request: ClientRequest) -> bool:
        """By the largest sample that there is: of which alias it is, is not known yet."""
        return any(sampled(table.sample, "shadow", request.request_id) for table in self._tables().values())

    def _tables(self) -> Mapping[str, ShadowTable]:
        return self._routing.config.shadows

    def _follow(self, request: ClientRequest, real: Answered) -> None:
        """Begins its shadow, if its alias has one and that may run."""
        alias = real.receipt.alias
        table = self._tables().get(alias)
        if table is None or not sampled(table.sample, "shadow", request.request_id):
            return
        most = real.usage.prompt_tokens + request.n * max(1, real.longest)
        budget = self._budget(alias, table)
        if self._background.closed or not budget.take(most, self._clock.monotonic()):
            self._metrics.shadow_dropped(alias)
            return
        self._background.start(self._compare(_Comparison(alias, table, request, real, most), budget), name="shadow")

    def _budget(self, alias: str, table: ShadowTable) -> ShadowBudget:
        known = self._budgets.get(alias)
        if known is None or known[0] != table:
            fresh = ShadowBudget(table.tokens_per_minute, table.max_concurrent, self._clock.monotonic())
            self._budgets = {name: kept for name, kept in self._budgets.items() if name in self._tables()}
            known = self._budgets[alias] = table, fresh
        return known[1]

    async def _compare(self, asked: _Comparison, budget: ShadowBudget) -> None:
        shadow, started = Answered(self._clock), self._clock.monotonic()
        try:
            end = await self._answer(asked, shadow)
        finally:
            used = shadow.usage.prompt_tokens + shadow.usage.completion_tokens
            budget.give_back(max(0, asked.tokens - used), self._clock.monotonic())
        ttft = None if shadow.first_delta_at is None else shadow.first_delta_at - started
        share = agreement(asked.real, shadow) if end is End.ANSWERED else None
        self._metrics.shadow_ended(asked.alias, end, ttft, share)

    async def _answer(self, asked: _Comparison, shadow: Answered) -> End:
        """Whatever comes of it, nobody is told but the metrics: also of what is a bug of ours."""

        async def note(events: Sequence[Event]) -> None:
            shadow.note(events)

        error: Exception | None = None
        try:
            await self._aside(_shadow_of(asked), note, asked.table.deadline_seconds)
        except WeirError as failure:
            error = failure
        except Exception as failure:
            error = failure
            get_logger().error("shadow_failed", exc_info=failure)
        return outcome_of(error, accepted=bool(shadow.token_ids), ttft_seconds=None, waited=0.0).end


def _shadow_of(asked: _Comparison) -> ClientRequest:
    """The same task for the other target, at nobody's expense: its blocks and its share are no client's."""
    request, max_tokens = asked.request, max(1, asked.real.longest)
    stopping = StoppingConditions()
    stopping.CopyFrom(request.stopping)
    stopping.max_tokens = max_tokens
    stopping.min_tokens = min(stopping.min_tokens, max_tokens)
    return replace(
        request,
        request_id=f"shadow-{blake2b(request.request_id.encode(), digest_size=16).hexdigest()}",
        model=str(asked.table.target),
        stopping=stopping,
        priority=_LOWEST_PRIORITY,
        tenant=f"shadow-{blake2b(request.tenant.encode(), digest_size=16).hexdigest()}",
        routing=RoutingOptions(),
        subject="",
        keeping=NOT_KEPT,
    )


def agreement(real: Answered, shadow: Answered) -> float | None:
    """The share of the outputs' tokens until they first differ, of the longer one's; None: their ids mean not the same.

    After the first token that differs, the rest are answers to different beginnings.
    """
    ours, theirs = real.receipt.model_version.tokenizer_hash, shadow.receipt.model_version.tokenizer_hash
    if ours != theirs or not real.token_ids:
        return None
    pairs = [(ids, shadow.token_ids.get(index, [])) for index, ids in real.token_ids.items()]
    same = sum(_common(*pair) for pair in pairs)
    return same / sum(max(map(len, pair)) for pair in pairs)


def _common(first: list[int], second: list[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
