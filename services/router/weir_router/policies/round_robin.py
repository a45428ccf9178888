"""`round_robin` and `weighted_round_robin`: each worker in its turn, whatever it has to do.

The turn's number alone says whose it is: the schedule is that of "earliest deadline first", in which the i-th of n
workers, of weight w, is due at (k + (i + ½) / n) / w for its k-th turn. It is as smooth as nginx's smooth weighted
round robin (a worker of weight 5 beside two of weight 1 is never given four requests in a row) and is what Envoy
schedules by; here no state is kept, for the k of each worker is computed from the turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import floor

from weir_router.fleet.views import ExecutorView
from weir_router.policies.load import share
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored


class RoundRobin:
    """All alike, but for those that are new."""

    name = "round_robin"
    weighs_prefixes = False

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        # By address, so that the turns do not depend on the order in which workers are known.
        ordered = sorted(candidates, key=lambda candidate: candidate.address)
        weights = [self._weight(candidate.executor) for candidate in ordered]
        due = due_times(weights, demand.turn)
        total = sum(weights)
        scores = [time * total - demand.turn for time in due]
        order = sorted(range(len(due)), key=due.__getitem__)
        return Ranking(ordered, scores, order, lambda index: {"share": weights[index] / total})

    def _weight(self, executor: ExecutorView) -> float:
        return executor.ramp


class WeightedRoundRobin(RoundRobin):
    name = "weighted_round_robin"

    def _weight(self, executor: ExecutorView) -> float:
        return share(executor)


def due_times(weights: Sequence[float], turn: int) -> list[float]:
    """When each is due next, after `turn` turns have been taken: the earliest, the first of equals, is the next.

    The time of turn t is about t / sum(weights). At any time x, floor(x·w + 1 - phase) turns of a worker have come.
    """
    count = len(weights)
    phases = [(index + 0.5) / count for index in range(count)]
    # So early that no more than `turn` turns have come, whatever is rounded; then the few that are left, one by one.
    start = max(0.0, (turn - count / 2 - 1) / sum(weights))
    taken = [floor(start * weight + 1.0 - phase) for weight, phase in zip(weights, phases, strict=True)]
    due = [(taken[index] + phases[index]) / weights[index] for index in range(count)]
    queue = list(zip(due, range(count), strict=True))
    heapq.heapify(queue)
    for _ in range(turn - sum(taken)):
        index = queue[0][1]
        taken[index] += 1
        due[index] = (taken[index] + phases[index]) / weights[index]
        heapq.heapreplace(queue, (due[index], index))
    return due
