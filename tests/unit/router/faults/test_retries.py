"""A request is tried again as the table says, so often at most, and while the budget lasts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from weir_chassis.errors import Draining, InvalidArgument, Overloaded, WorkerLost
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.faults.budget import RetryBudget
from weir_router.faults.retries import Extra, Retries
from weir_router.faults.table import Where
from weir_router.metrics import RouterMetrics

BEFORE = Where.BEFORE_FIRST_TOKEN


@dataclass
class Bench:
    floor: int = 2
    clock: VirtualClock = field(default_factory=VirtualClock)
    metrics: RouterMetrics = field(default_factory=lambda: RouterMetrics(Metrics("test")))

    def __post_init__(self) -> None:
        self.retries = Retries(RetryBudget(0.1, self.floor, 60.0), self.clock, self.metrics)


def test_once_and_only_for_what_another_may_do_better() -> None:
    retries = Bench().retries
    assert retries.may_retry(WorkerLost("gone"), BEFORE)
    assert not retries.may_retry(WorkerLost("gone"), BEFORE, 2)
    assert retries.may_retry(WorkerLost("gone"), BEFORE, 2, max_attempts=3)
    assert not retries.may_retry(InvalidArgument("n", "is wrong everywhere"), BEFORE)


def test_the_budget_is_one_for_all_and_a_drain_is_free() -> None:
    retries = Bench().retries
    assert retries.allows(Extra.HEDGE, "slow")
    assert retries.may_retry(Overloaded("full"), BEFORE, extra=Extra.CONTINUATION)
    assert not retries.may_retry(Overloaded("full"), BEFORE)
    assert not retries.allows(Extra.HEDGE, "slow")
    assert retries.may_retry(Draining("going"), BEFORE)
    for _ in range(30):
        retries.note_request()
    assert [retries.may_retry(Overloaded("full"), BEFORE) for _ in range(2)] == [True, False]


def test_a_refusal_by_the_table_costs_nothing() -> None:
    retries = Bench(floor=1).retries
    for _ in range(9):
        assert not retries.may_retry(InvalidArgument("n", "is wrong everywhere"), BEFORE)
    assert retries.may_retry(WorkerLost("gone"), BEFORE)


def test_a_try_that_is_free_is_there_although_the_budget_is_spent() -> None:
    retries = Bench(floor=0).retries
    assert not retries.may_retry(WorkerLost("gone"), BEFORE)
    assert retries.may_retry(WorkerLost("gone"), BEFORE, charged=False)
    assert not retries.may_retry(InvalidArgument("n", "is wrong everywhere"), BEFORE, charged=False)


@pytest.mark.parametrize("extra", Extra)
async def test_what_is_counted(extra: Extra) -> None:
    bench = Bench(floor=1)
    assert bench.retries.may_retry(WorkerLost("gone"), BEFORE, extra=extra)
    assert not bench.retries.may_retry(WorkerLost("gone"), BEFORE, extra=extra)
    metrics = bench.metrics
    assert metrics.retries.labels(extra.value, "WORKER_LOST")._value.get() == 1
    assert metrics.refused_retries.labels(extra.value)._value.get() == 1
    assert metrics.retry_budget._value.get() == 0
