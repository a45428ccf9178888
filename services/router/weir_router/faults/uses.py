"""The requests that share one stream to a worker: how each of them ends is told to the worker's breaker."""

from __future__ import annotations

from collections.abc import Callable

from weir_chassis.errors import Draining, WeirError
from weir_router.faults.breaker import Use
from weir_router.faults.table import Where


class Uses:
    """By handle, as many as live on the stream.

    `begin` is given the model; None: nobody watches. `drains`: whether the worker has said that it takes nothing new.
    """

    def __init__(self, begin: Callable[[str], Use] | None = None, drains: Callable[[], bool] = lambda: False) -> None:
        self._begin, self._drains = begin, drains
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

    def lost(self, error: WeirError) -> WeirError:
        """The stream is over. Returns what its requests are to be told: a drain was planned, and is nobody's fault."""
        drains = self._drains() or isinstance(error, Draining)
        live, self._live = self._live, {}
        for use in live.values():
            use.failed(error, Where.DRAIN if drains else Where.AFTER_FIRST_TOKEN)
        return Draining(error.message, metadata=error.metadata) if drains else error
