"""`power_of_two_choices`: the less loaded of two workers that are drawn for the request.

Routers that know the same stale loads do not all turn to the same worker. Mitzenmacher, "The Power of Two Choices in
Randomized Load Balancing", IEEE TPDS 12(10), 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from weir_router.policies.draws import mix
from weir_router.policies.least_outstanding import load_terms
from weir_router.policies.load import loads, shares
from weir_router.policies.policy import Candidate, Demand, Ranking, Scored


class PowerOfTwoChoices:
    name = "power_of_two_choices"
    weighs_prefixes = False

    def rank(self, candidates: Sequence[Candidate], demand: Demand) -> Sequence[Scored]:
        count, drawn = len(candidates), mix(demand.turn)
        first = drawn % count
        # All in one order that begins with the two: the rest, of whom nothing is asked, have no load to be chosen by.
        order = [(first + step) % count for step in range(count)]
        if count > 1:
            second = 1 + (drawn >> 32) % (count - 1)
            order[1], order[second] = order[second], order[1]
        pair = order[:2]
        scores = [inf] * count
        drawn_ones = [candidates[index] for index in pair]
        for index, load in zip(pair, loads(drawn_ones, shares(drawn_ones), demand), strict=True):
            scores[index] = load
        order[:2] = sorted(pair, key=scores.__getitem__)
        return Ranking(candidates, scores, order, lambda index: load_terms(candidates[index]))
