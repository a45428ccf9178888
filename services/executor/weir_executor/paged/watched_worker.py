"""A worker whose failures are counted: one costs its batch, and a small request proves the worker before the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from weir_chassis.errors import Internal
from weir_executor.paged.batch import Batch
from weir_executor.paged.worker import Result, Worker

_log = logging.getLogger(__name__)
# In a row, self-tests among them: a worker that has failed so often fails everything, and would draw all traffic by
# being the first to be free again. Between failed self-tests there is time for a device's memory to come free.
_MAX_FAILURES, _SECONDS_BETWEEN_FAILURES = 5, 0.2


class WatchedWorker:
    """Used on the step thread only. `test` puts a small request through the worker, or raises."""

    def __init__(self, worker: Worker, test: Callable[[], None]) -> None:
        self._worker, self._test = worker, test
        self._failures = 0  # in a row
        self.is_proven = True  # no batch has failed since a self-test succeeded

    def run(self, batch: Batch) -> Sequence[Result]:
        """An exception becomes everyone's result, unless it is fatal."""
        try:
            results = self._worker.run(batch)
        except Exception as error:
            if self._worker.is_fatal(error):
                raise
            self._failures, self.is_proven = self._failures + 1, False
            _log.exception("a step of %d sequences failed", len(batch.scheduled))
            return [Internal(f"the step failed: {type(error).__name__}")] * len(batch.scheduled)
        self._failures = 0
        return results

    def prove(self, closes_within: Callable[[float], bool]) -> None:
        """For after a failed batch: raises when the worker is of no more use.

        That a small request succeeds forgives no failure: only somebody's batch does. `closes_within` waits for so many
        seconds, or until the engine closes, and says whether it does.
        """
        while not self.is_proven:
            if self._failures >= _MAX_FAILURES:
                raise Internal(f"{_MAX_FAILURES} steps in a row failed")
            try:
                self._test()
            except Exception as error:
                if self._worker.is_fatal(error):
                    raise
                self._failures += 1
                _log.exception("the self-test after a failed step failed")
                if closes_within(_SECONDS_BETWEEN_FAILURES):
                    return
            else:
                self.is_proven = True
