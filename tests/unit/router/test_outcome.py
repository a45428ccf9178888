from __future__ import annotations

import asyncio

import pytest

from weir_chassis.errors import (
    Cancelled,
    DeadlineExceeded,
    NoWorker,
    Overloaded,
    PromptTooLong,
    SlowConsumer,
    Unsupported,
    WorkerLost,
)
from weir_router.models.outcome import End, Outcome, outcome_of


@pytest.mark.parametrize(
    ("error", "accepted", "end"),
    [
        (None, True, End.ANSWERED),
        (WorkerLost("x"), True, End.FAILED),
        (WorkerLost("x"), False, End.FAILED),
        (NoWorker("x"), False, End.FAILED),
        (DeadlineExceeded("x"), False, End.FAILED),
        (Overloaded("x"), False, End.REFUSED),
        (Overloaded("x"), True, End.FAILED),
        (PromptTooLong("prompt", 9, 8), False, End.REFUSED),
        (Unsupported("x"), False, End.REFUSED),
        (Cancelled("x"), True, End.LEFT),
        (SlowConsumer("x"), True, End.LEFT),
        (asyncio.CancelledError(), True, End.LEFT),
        (ValueError("ours"), False, End.FAILED),
    ],
)
def test_what_a_request_says_of_its_target(error: BaseException | None, accepted: bool, end: End) -> None:
    assert outcome_of(error, accepted=accepted, ttft_seconds=0.5, waited=3.0) == Outcome(end, 0.5)


@pytest.mark.parametrize(
    ("left_seconds", "end"), [(None, End.LEFT), (5.0, End.LEFT), (0.05, End.FAILED), (0, End.FAILED)]
)
def test_who_leaves_when_his_deadline_passes_has_not_left_by_himself(left_seconds: float | None, end: End) -> None:
    error = asyncio.CancelledError()
    told = outcome_of(error, accepted=True, ttft_seconds=None, waited=1.0, left_seconds=left_seconds)
    assert told.end is end


def test_who_left_without_a_token_had_waited_so_long_at_least() -> None:
    left = outcome_of(asyncio.CancelledError(), accepted=False, ttft_seconds=None, waited=3.0)
    assert left == Outcome(End.LEFT, 3.0)
    assert outcome_of(WorkerLost("x"), accepted=False, ttft_seconds=None, waited=3.0).ttft_seconds is None
