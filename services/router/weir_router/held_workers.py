"""The workers of one request: where its tokens are drawn, where they become text, and all that it has left.

    executor ──► left, or full        one at a time; perhaps a second one beside it, until either speaks
    lane ──────► left                 one at a time

A stream on which the request's handle has been used knows it and gets it never again, so those that it has left are
remembered. Whatever is still held anywhere is given back by `release`.
"""

from __future__ import annotations

from weir_router.hedge import Second
from weir_router.legs import Drawer, Lane, Leg
from weir_router.metrics import RouterMetrics


class HeldWorkers:
    def __init__(self, handle: int, metrics: RouterMetrics):
        self._handle, self._metrics = handle, metrics
        self.leg: Leg | None = None
        self.lane: Lane | None = None
        # Beside the executor that has it, while that one is silent.
        self.second: Second | None = None
        self._left_executors: list[Drawer] = []
        # Those that had no room and so know nothing of it.
        self._full_executors: list[Drawer] = []
        self._left_lanes: list[Lane] = []
        # The executor that it has entered is one of them.
        self._is_full = False

    @property
    def executor(self) -> Drawer:
        """That has it now."""
        assert self.leg is not None, "it has no executor yet"
        return self.leg.executor

    @property
    def used_executors(self) -> frozenset[str]:
        """Addresses of those that know this handle or have no room. One that was lost and is back knows nothing."""
        current = [self.leg.executor] if self.leg is not None and not self._is_full else []
        second = [self.second.leg.executor] if self.second is not None else []
        streams = [*self._left_executors, *self._full_executors, *current, *second]
        return frozenset(stream.address for stream in streams if stream.is_open)

    @property
    def used_postprocessors(self) -> frozenset[str]:
        streams = [*self._left_lanes, *([self.lane] if self.lane is not None else [])]
        return frozenset(stream.address for stream in streams if stream.is_open)

    def enter(self, leg: Leg, *, handed_over: bool = False) -> None:
        """It is counted at this executor from now on, and no more at the one before.

        `handed_over`: that one keeps the prompt's blocks until all is over, for the next one is to read them.
        """
        if self.leg is not None:
            if not handed_over:
                self.leg.executor.withdraw(self._handle)
            self.leg.reservation.release()
            if not self._is_full:
                self._left_executors.append(self.leg.executor)
        self.leg, self._is_full = leg, False

    def note_full(self) -> None:
        """The executor that it has entered has no room for it."""
        self._full_executors.append(self.executor)
        self._is_full = True

    def forgive_full(self) -> None:
        """Those that had no room may be asked again."""
        self._full_executors.clear()

    def change_lane(self, lane: Lane) -> None:
        if self.lane is not None:
            self.lane.close(self._handle)
            self._left_lanes.append(self.lane)
        self.lane = lane

    def take_second(self) -> Leg:
        """It has won, and is to be entered."""
        second, self.second = self.second, None
        assert second is not None, "there is no second one"
        self._metrics.hedges.labels("won").inc()
        return second.leg

    def drop_second(self, outcome: str) -> None:
        """Where there is one. `outcome`: what came of it, for the metrics."""
        second, self.second = self.second, None
        if second is not None:
            second.leg.executor.withdraw(self._handle)
            second.leg.reservation.release()
            self._left_executors.append(second.leg.executor)
            self._metrics.hedges.labels(outcome).inc()

    def release(self) -> None:
        """Withdraws whatever still lives anywhere: nothing is heard of it any more. Once more does nothing."""
        for executor in self._left_executors:
            executor.withdraw(self._handle)
        if self.leg is not None:
            self.leg.executor.withdraw(self._handle)
            self.leg.reservation.release()
        if self.lane is not None:
            self.lane.close(self._handle)
