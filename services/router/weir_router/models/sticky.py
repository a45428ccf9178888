"""Which of several weighted arms a subject belongs to: the same one each time, on every router. Pure.

Weighted rendezvous hashing: each arm draws from an exponential distribution of its weight's rate, by a hash of the arm
and the subject, and the first to come wins (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006,
with a hash for the random number). An arm wins as often as its share of the weights. What another arm draws does not
depend on it, so that a weight that grows only draws subjects to its arm, and one that falls only sends its own away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

_RANGE: Final = 2.0**64


def in_order(weights: Mapping[str, float], experiment: str, subject: str) -> list[str]:
    """Names of the arms that have a weight, the subject's own first, and then whose it would be without that one."""
    draws = {arm: _uniform(experiment, arm, subject) for arm, weight in weights.items() if weight > 0}
    return sorted(draws, key=lambda arm: (-math.log(draws[arm]) / weights[arm], arm))


def _uniform(*parts: str) -> float:
    """(0, 1), by the parts alone; each is told from its neighbours by its length."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) + 0.5) / _RANGE


def sampled(share: float, purpose: str, subject: str) -> bool:
    """Whether the subject is among this share of all, chosen by nothing else."""
    return _uniform(purpose, subject) < share
