"""When a worker is trusted, tested, and given up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weir_chassis.errors import Internal
from weir_executor.paged.watched_worker import WatchedWorker


class DeviceLostError(Exception):
    pass


class Scripted:
    """`steps` and `tests` say what the next ones raise; None: nothing."""

    def __init__(self, steps: list[Exception | None], tests: list[Exception | None] | None = None) -> None:
        self.steps, self.tests, self.waits = steps, tests or [], list[float]()
        worker: Any = SimpleNamespace(run=self._run, is_fatal=lambda error: isinstance(error, DeviceLostError))
        self.watched = WatchedWorker(worker, self._test)

    def _run(self, _: object) -> list[object]:
        if (error := self.steps.pop(0)) is not None:
            raise error
        return [()]

    def _test(self) -> None:
        if (error := self.tests.pop(0)) is not None:
            raise error

    def step(self, *, closes: bool = False) -> list[object]:
        batch: Any = SimpleNamespace(scheduled=[None, None])
        results: list[object] = list(self.watched.run(batch))
        self.watched.prove(lambda seconds: self.waits.append(seconds) or closes)  # type: ignore[func-returns-value]
        return results


def test_a_batch_that_fails_fails_as_a_whole_and_a_test_follows() -> None:
    one = Scripted([ValueError("x"), None], [None])
    results = one.step()
    assert [type(result) for result in results] == [Internal, Internal]
    assert "ValueError" in str(results[0])
    assert one.watched.is_proven
    assert not one.tests, "it was tested once"
    assert one.step() == [()]


def test_a_failed_test_is_repeated_after_a_while() -> None:
    one = Scripted([ValueError("x")], [MemoryError(), MemoryError(), None])
    one.step()
    assert one.watched.is_proven
    assert len(one.waits) == 2


def test_five_failures_in_a_row_are_the_end() -> None:
    with pytest.raises(Internal, match="5 steps in a row"):
        Scripted([ValueError("x")], [MemoryError()] * 9).step()
    steps = Scripted([ValueError("x")] * 5, [None] * 9)
    for _ in range(4):
        steps.step()
    with pytest.raises(Internal, match="5 steps in a row"):
        steps.step()


def test_only_a_batch_that_succeeds_forgives() -> None:
    one = Scripted([*([ValueError("x")] * 4), None, *([ValueError("x")] * 4)], [None] * 8)
    for _ in range(9):
        one.step()
    assert one.watched.is_proven


def test_what_is_fatal_comes_through() -> None:
    with pytest.raises(DeviceLostError):
        Scripted([DeviceLostError()]).step()
    with pytest.raises(DeviceLostError):
        Scripted([ValueError("x")], [DeviceLostError()]).step()


def test_an_engine_that_closes_waits_for_no_test() -> None:
    one = Scripted([ValueError("x")], [MemoryError()])
    one.step(closes=True)
    assert not one.watched.is_proven


def test_a_worker_that_never_failed_is_not_tested() -> None:
    one = Scripted([None])
    assert one.step() == [()]
