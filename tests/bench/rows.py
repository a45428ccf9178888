"""What is measured, and what is wanted of it: pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the seconds that `workload` takes."""

    name: str
    workload: str
    goal: float  # times as fast as the best peer
    before: str | None = None  # answered first, untimed
    less: str | None = None  # whose seconds are taken off


ROWS = (
    Row("decode", "decode", goal=1.5, less="first_token"),
    Row("mixed", "mixed", goal=1.4),
    Row("prefill", "prefill", goal=1.1),
    Row("shared_uncached", "shared_prefix_uncached", goal=1.5),
    Row("shared_cold", "shared_prefix", goal=1.5),
    Row("shared_warm", "shared_prefix", goal=1.5, before="shared_prefix_once"),
)
SUITE_GOAL = 0.9  # of the bare engine's speed on `mixed`

# Rounds are there for noise, and noise does not make anyone twice as fast.
_OUT_OF_REACH = 2.0


def salt(row: Row, round_: int) -> int:
    """One that no other row and round has: nobody finds a prompt of before in a cache."""
    return len(ROWS) * round_ + ROWS.index(row)


def in_turn(names: list[str], round_: int) -> list[str]:
    """The order of one round: every other one goes backwards, so that nobody always follows the same neighbour."""
    return names if round_ % 2 == 0 else names[::-1]


def worth_another_round(name: str, times: dict[str, list[float]], ours: Container[str]) -> bool:
    """Whether another round could change who is best. We are measured in every one."""
    if name in ours or not times.get(name):
        return True
    return min(times[name]) <= _OUT_OF_REACH * min(min(taken) for taken in times.values() if taken)
