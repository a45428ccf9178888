"""One Embed call: each of its inputs is a request of its own to the engine, and all of them succeed or none does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from weir_executor.admission import Admission
from weir_executor.live_requests import LiveRequest
from weir_executor.request import GenerationRequest
from weir_executor.step_output import RequestEnd, TokenOutput


class EmbedCall:
    """A `Listener`. Used from one event loop, and once."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._ends: dict[int, RequestEnd] = {}  # by the input's index
        self._wanted = 0
        self._error: Exception | None = None
        self._done = asyncio.Event()

    async def run(self, requests: Sequence[GenerationRequest], request_id: str) -> list[RequestEnd]:
        """The ends of all, in order. Raises what the first that was refused or failed did; the rest is then aborted.

        The wait is the caller's: it ends with the call's deadline or cancellation, which abort all.
        """
        self._wanted = len(requests)
        lives = self._admission.submit_all(requests, self, request_id)
        try:
            await self._done.wait()
        finally:
            for live in lives:
                if not live.told:
                    self._admission.discard(live)
        if self._error is not None:
            raise self._error
        return [self._ends[index] for index in range(self._wanted)]

    def hear_tokens(self, live: LiveRequest, output: TokenOutput) -> None:
        raise AssertionError(f"input {live.handle} has drawn tokens: {output}")

    def hear_end(self, live: LiveRequest, end: RequestEnd) -> None:
        live.told = True
        self._ends[live.handle] = end
        if len(self._ends) == self._wanted:
            self._done.set()

    def hear_failure(self, live: LiveRequest, error: Exception) -> None:
        live.told = True
        if self._error is None:
            self._error = error
        self._done.set()

    def flush(self) -> None:
        """Each word was acted on when it was heard."""
