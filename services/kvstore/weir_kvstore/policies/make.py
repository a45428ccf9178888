"""A policy from its name, as the file of tiers gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from weir_kvstore.policies.fifo import Fifo
from weir_kvstore.policies.lfu import Lfu
from weir_kvstore.policies.lru import Lru
from weir_kvstore.policies.policy import EvictionPolicy
from weir_kvstore.policies.s3fifo import S3Fifo

PolicyName = Literal["lru", "lfu", "fifo", "s3fifo"]
POLICIES: Final[Mapping[PolicyName, Callable[[], EvictionPolicy]]] = {
    "lru": Lru,
    "lfu": Lfu,
    "fifo": Fifo,
    "s3fifo": S3Fifo,
}


def make_policy(name: PolicyName) -> EvictionPolicy:
    return POLICIES[name]()
