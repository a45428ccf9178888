"""One run: a policy on a workload, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from statistics import fmean

from sim.clock import VirtualTime
from sim.executor import Job, SimExecutor
from sim.router import EVENT_SECONDS, Asked, SimRouter
from sim.workloads import Workload
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_router.policies.policy import Policy

# After the last request: whatever is still to be done by then never ends.
_PATIENCE_SECONDS = 600.0


@dataclass
class Figures:
    """Seconds are simulated. `requests`: by executor, those that it gave a first token."""

    ttft_seconds: list[float] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    peak_waiting: int = 0
    unanswered: int = 0

    @property
    def mean_ttft(self) -> float:
        return fmean(self.ttft_seconds)

    @property
    def p99_ttft(self) -> float:
        ordered = sorted(self.ttft_seconds)
        return ordered[int(0.99 * (len(ordered) - 1))]

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    @property
    def imbalance(self) -> float:
        """The busiest executor's requests beside an even part of them."""
        return max(self.requests.values()) / (sum(self.requests.values()) / len(self.requests))


class Run:
    """`policies`: one for each router, for a policy is a router's own."""

    def __init__(self, policies: Sequence[Policy], workload: Workload, seed: int) -> None:
        self._time, self._random, self._workload = VirtualTime(), Random(seed), workload
        self._routers = [SimRouter(policy, self._time, self._random.getrandbits(32)) for policy in policies]
        self._executors: dict[str, SimExecutor] = {}
        self._answered: set[int] = set()
        self._names = (f"e{number}" for number in count())
        self.figures = Figures(requests=Counter())
        for _ in range(workload.executors):
            self._join(at_start=True)
        for asked in workload.asked:
            self._time.after(asked.at, lambda asked=asked: self._route(asked))  # type: ignore[misc]
        if workload.churn_seconds is not None:
            self._time.after(workload.churn_seconds, self._churn)

    def run(self) -> Figures:
        last = max(asked.at for asked in self._workload.asked)
        self._time.run(last + _PATIENCE_SECONDS)
        figures = self.figures
        figures.unanswered = len(self._workload.asked) - len(figures.ttft_seconds)
        figures.peak_waiting = max(executor.peak_waiting for executor in self._executors.values())
        return figures

    def _route(self, asked: Asked) -> None:
        def told(executor: str, job: Job) -> None:
            if asked.number not in self._answered:  # else it goes on after its executor has died
                self._answered.add(asked.number)
                self.figures.ttft_seconds.append(self._time.now - asked.at)
                self.figures.requests[executor] += 1
                self.figures.prompt_tokens += job.prompt_tokens
                self.figures.cached_tokens += job.cached_tokens

        router = self._routers[asked.number % len(self._routers)]
        router.route(asked, told, lambda: self._route(asked))

    def _join(self, *, at_start: bool = False) -> None:
        executor = SimExecutor(next(self._names), self._time, self._tell, self._workload.spec)
        self._executors[executor.name] = executor
        self.figures.requests[executor.name] = 0
        for router in self._routers:
            router.join(executor, at_start=at_start)

    def _churn(self) -> None:
        """One dies, and another one comes; until nobody asks any more."""
        name = self._random.choice([name for name, executor in self._executors.items() if executor.alive])
        for router in self._routers:
            router.leave(name)
        for job in self._executors[name].stop():
            job.on_end()
            job.on_lost()
        self._join()
        if self._time.now < self._workload.asked[-1].at:
            assert self._workload.churn_seconds is not None
            self._time.after(self._workload.churn_seconds, self._churn)

    def _tell(self, name: str, events: Sequence[KvEvent]) -> None:
        for router in self._routers:
            self._time.after(EVENT_SECONDS, lambda router=router: router.hear(name, events))  # type: ignore[misc]
