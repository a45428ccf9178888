"""One router of the simulation: what it knows of the fleet, and the production code that chooses by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sim.clock import VirtualTime
from sim.executor import BLOCK_TOKENS, Job, SimExecutor
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir.kvstore.v1.block_hash import join_hashes
from weir_chassis.kv_events.wire import Source
from weir_router.fleet.model_version import Version
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.ramp import ramp
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorModel, ExecutorView, Load, TokenizerModel, TokenizerView, WorkerState
from weir_router.policies.choose import rank
from weir_router.policies.policy import Demand, Policy
from weir_router.policies.prediction import uncached_tokens
from weir_router.prefixes.index import PrefixIndex
from weir_router.prefixes.prefixes import Prefixes
from weir_router.prefixes.routed import RoutedPrefixes

_MODEL = ExecutorModel(Version("m", "r1", "t" * 32), 32_000, 131_072, BLOCK_TOKENS)
_TOKENIZERS = (TokenizerView("t", WorkerState.SERVING, (TokenizerModel(_MODEL.version, False),)),)
# As the router's own settings have them.
REPORT_SECONDS = 1.0
# From a step to the index: a batch of events lingers, travels and is taken in.
EVENT_SECONDS = 0.05
RAMP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for; `number` is unique in a run."""

    number: int
    at: float
    block_hashes: tuple[bytes, ...]
    prompt_tokens: int
    output_tokens: int
    session: str = ""


@dataclass(slots=True)
class _Known:
    """What is known of one executor. `joined_at`: None for one that was there from the beginning."""

    executor: SimExecutor
    count: Outstanding
    joined_at: float | None
    load: Load | None = None
    reported_at: float = 0.0


class SimRouter:
    """`first_turn`: where its turns begin."""

    def __init__(self, policy: Policy, time: VirtualTime, first_turn: int) -> None:
        self.policy, self._time, self._turn = policy, time, first_turn
        self._known: dict[str, _Known] = {}
        self._prefixes = Prefixes(PrefixIndex(100_000), RoutedPrefixes())

    def join(self, executor: SimExecutor, *, at_start: bool = False) -> None:
        known = self._known[executor.name] = _Known(
            executor, Outstanding(), joined_at=None if at_start else self._time.now
        )
        self._prefixes.reset(Source("executor", executor.name))
        self._report(known)

    def leave(self, name: str) -> None:
        del self._known[name]
        self._prefixes.lost(Source("executor", name))

    def hear(self, name: str, events: Sequence[KvEvent]) -> None:
        if name in self._known:
            self._prefixes.apply(Source("executor", name), events)

    def route(self, asked: Asked, told: Callable[[str, Job], None], lost: Callable[[], None]) -> None:
        """`told` hears who has got it when its first token is there; `lost` when its executor dies before its end."""
        demand = self._demand(asked)
        best = rank(self._snapshot(), demand, self.policy)[0].candidate
        known = self._known[best.address]
        tokens = asked.prompt_tokens + asked.output_tokens
        reservation = known.count.reserve(tokens, uncached_tokens(best, demand))
        self._prefixes.note_routed(best.address, demand.block_hashes, self._time.now)

        def first_token() -> None:
            reservation.spend(asked.prompt_tokens)
            reservation.prefilled()
            told(best.address, job)

        job = Job(asked.block_hashes, asked.prompt_tokens, asked.output_tokens, first_token, reservation.release, lost)
        known.executor.submit(job)

    def _demand(self, asked: Asked) -> Demand:
        self._turn += 1
        packed, cached = join_hashes(asked.block_hashes), {}
        if self.policy.weighs_prefixes:
            cached = self._prefixes.cached_tokens(packed, BLOCK_TOKENS, self._time.now)
        return Demand(
            _MODEL.version,
            asked.prompt_tokens,
            asked.output_tokens,
            n=1,
            turn=self._turn,
            session=asked.session,
            block_hashes=packed,
            block_size=BLOCK_TOKENS,
            cached_tokens=cached,
        )

    def _snapshot(self) -> FleetSnapshot:
        return FleetSnapshot(tuple(map(self._view, self._known.values())), _TOKENIZERS)

    def _view(self, known: _Known) -> ExecutorView:
        now = self._time.now
        share = 1.0 if known.joined_at is None else ramp(now - known.joined_at, RAMP_SECONDS)
        return ExecutorView(
            known.executor.name,
            WorkerState.SERVING,
            _MODEL,
            known.count.routed_tokens,
            known.count.foreign_tokens,
            load=replace(known.load, age_seconds=now - known.reported_at) if known.load else None,
            ramp=share,
            routed_prefill_tokens=known.count.routed_prefill_tokens,
            foreign_prefill_tokens=known.count.foreign_prefill_tokens,
        )

    def _report(self, known: _Known) -> None:
        executor = known.executor
        if self._known.get(executor.name) is not known:
            return
        known.reported_at = self._time.now
        known.count.report(executor.outstanding_tokens, executor.outstanding_prefill_tokens)
        known.load = Load(
            1,
            1,
            age_seconds=0.0,
            waiting_requests=len(executor.waiting),
            running_sequences=len(executor.running),
            prefill_token_seconds=executor.spec.token_seconds,
        )
        self._time.after(REPORT_SECONDS, lambda: self._report(known))
