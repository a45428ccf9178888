"""The requests that share one stream to a worker: how each of them ends is told to the worker's breaker."""

from __future__ import annotations

from collections.abc import Callable

from weir_chassis.errors import WeirError
from weir_router.faults.breaker import Use
from weir_router.faults.table import Where


class Uses:
    """By handle, as many as live on the stream. `begin` is given the model; None: nobody watches."""

    def __init__(self, begin: Callable[[str], Use] | None = None) -> None:
        self._begin = begin
        self._live: dict[int, Use] = {}

    def begin(self, handle: int, model: str = "") -> None:
        if self._begin is not None:
            self._live[handle] = self._begin(model)

    def succeeded(self, handle: int) -> None:
        if (use := self._live.pop(handle, None)) is not None:
            use.succeeded()

    def failed(self, handle: int, error: WeirError, where: Where = Where.BEFORE_FIRST_TOKEN) -> None:
        if (use := self._live.pop(handle, None)) is not None:
            use.failed(error, where)

    def ended(self, handle: int) -> None:
        """Without an outcome: it was withdrawn."""
        if (use := self._live.pop(handle, None)) is not None:
            use.ended()

    def all_failed(self, error: WeirError, where: Where) -> None:
        live, self._live = self._live, {}
        for use in live.values():
            use.failed(error, where)
