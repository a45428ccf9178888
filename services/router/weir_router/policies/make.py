"""Policies by the names that the configuration has for them, and what each of them may be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from pydantic import Field

from weir_chassis.toml_config import Table
from weir_router.policies.cheapest import Cheapest, CheapestOptions
from weir_router.policies.consistent_hashing import ConsistentHashing, ConsistentHashingOptions
from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.policy import Policy
from weir_router.policies.power_of_two import PowerOfTwoChoices
from weir_router.policies.prefix_aware import PrefixAware, PrefixAwareOptions
from weir_router.policies.round_robin import RoundRobin, WeightedRoundRobin

PolicyName = Literal[
    "least_outstanding_tokens",
    "round_robin",
    "weighted_round_robin",
    "power_of_two_choices",
    "consistent_hashing",
    "prefix_aware",
    "cheapest",
]


class PolicyOptions(Table):
    policy: PolicyName = Field(default="least_outstanding_tokens", description="by which an executor is chosen")
    consistent_hashing: ConsistentHashingOptions = ConsistentHashingOptions()
    prefix_aware: PrefixAwareOptions = PrefixAwareOptions()
    cheapest: CheapestOptions = CheapestOptions()


POLICIES: Final[Mapping[PolicyName, Callable[[PolicyOptions], Policy]]] = {
    "least_outstanding_tokens": lambda _: LeastOutstandingTokens(),
    "round_robin": lambda _: RoundRobin(),
    "weighted_round_robin": lambda _: WeightedRoundRobin(),
    "power_of_two_choices": lambda _: PowerOfTwoChoices(),
    "consistent_hashing": lambda options: ConsistentHashing(options.consistent_hashing),
    "prefix_aware": lambda options: PrefixAware(options.prefix_aware),
    "cheapest": lambda options: Cheapest(options.cheapest),
}


def make_policy(options: PolicyOptions) -> Policy:
    return POLICIES[options.policy](options)
