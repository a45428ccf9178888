"""Whether the server is there, and is still the one that it was. Used on the engine's loop only.

    there ──it does not answer, is another one, or draws nothing when a call has failed──▶ lost ──▶ away
    there ──health says that it takes nothing now──▶ away, while what it has goes on ──▶ there
    away  ──answers, says the same of itself, and draws two tokens──▶ there

Away, everything new is refused, retryable. One that comes back and is not what it was stays away until it is right
again: behind an address may be another server at any time, and some take any model's name for their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Final

import grpc

from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import Draining, WeirError, WorkerLost
from weir_executor.openengine.capabilities import Capabilities, WrongServerError
from weir_executor.openengine.errors import from_event
from weir_executor.openengine.server import Server

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 1.0
# So many calls in a row that are not answered in time: one may meet a pause.
_MAX_SILENCES: Final = 3
_FIRST_BACKOFF_SECONDS, _LAST_BACKOFF_SECONDS = 0.1, 5.0
_CLOSED: Final = (pb.HEALTH_STATE_STARTING, pb.HEALTH_STATE_DRAINING, pb.HEALTH_STATE_NOT_READY)


def closed(health: pb.HealthResponse) -> WeirError | None:
    """Why it takes nothing now; None: it does. Degraded is slow, and what a client does not know is no reason."""
    if health.state not in _CLOSED:
        return None
    wrong = next((check for check in health.checks if check.state == health.state), None)
    name = pb.HealthState.Name(health.state).removeprefix("HEALTH_STATE_").lower()
    said = f"the server is {name}" + (f" ({wrong.name})" if wrong is not None else "")
    return Draining(said) if health.state == pb.HEALTH_STATE_DRAINING else WorkerLost(said)


async def canary(server: Server, model: str, token_id: int, request_id: str, seconds: float) -> None:
    """One small request through the whole of it. Raises WrongServerError, WeirError, AioRpcError, TimeoutError."""
    request = pb.GenerateRequest(
        request_id=request_id,
        model=model,
        token_ids=pb.TokenIds(ids=[token_id] * 3),
        sampling=pb.SamplingParams(temperature=0.0, top_k=1, num_sequences=1),
        stopping=pb.StoppingOptions(max_tokens=2, ignore_eos=True),
    )
    drawn = 0
    stream = server.generate(request, ())
    try:
        async with asyncio.timeout(seconds):
            async for told in stream:
                if told.WhichOneof("event") == "error":
                    raise from_event(told.error)
                drawn += len(told.token.tokens)
    finally:
        stream.cancel()
    if not drawn:
        raise WrongServerError("it drew no token for a request of two")


class Link:
    """`away`: why nothing is taken now. `prove` sends a small request.

    `on_lost` is called when what the server was doing is lost, `on_back` before it is used again.
    """

    def __init__(
        self,
        server: Server,
        can: Capabilities,
        model: str,
        *,
        prove: Callable[[], Awaitable[None]],
        on_lost: Callable[[WeirError], None],
        on_back: Callable[[], Awaitable[None]],
        random: Random,
    ) -> None:
        self._server, self._can, self._model = server, can, model
        self._prove, self._on_lost, self._on_back, self._random = prove, on_lost, on_back, random
        self._suspected = asyncio.Event()
        self.away: WeirError | None = None

    def suspect(self) -> None:
        """Look at once, and closely."""
        self._suspected.set()

    async def run(self) -> None:
        """For as long as the engine lives."""
        while True:
            lost = await self._until_lost()
            _log.error("the server is away: %s", lost.message)
            self.away = lost
            self._on_lost(lost)
            await self._until_back()
            self.away = None
            _log.warning("the server is back")

    async def _until_lost(self) -> WeirError:
        silences = 0
        while True:
            proves = await self._pause()
            try:
                if (await self._check_same()).instance_id != self._can.instance_id:
                    return WorkerLost("another server answers in its place")
                self.away = closed(await self._server.health())
                silences = 0
                if proves and self.away is None:
                    await self._prove_anew()
            except TimeoutError:
                return WorkerLost("the server answers, and draws no token")
            except (WrongServerError, WeirError) as error:
                return WorkerLost(str(error))
            except grpc.aio.AioRpcError as error:
                silences += 1
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or silences >= _MAX_SILENCES:
                    return WorkerLost(f"the server was lost: {error.code().name}")

    async def _pause(self) -> bool:
        """Until it is time to look. Whether somebody has a suspicion."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._suspected.wait()
        was_suspected = self._suspected.is_set()
        self._suspected.clear()
        return was_suspected

    async def _until_back(self) -> None:
        backoff, said = _FIRST_BACKOFF_SECONDS, ""
        while True:
            await asyncio.sleep(backoff * self._random.uniform(0.5, 1.0))
            backoff = min(_LAST_BACKOFF_SECONDS, 2 * backoff)
            try:
                await self._look_anew()
            except (WrongServerError, WeirError, TimeoutError, grpc.aio.AioRpcError) as error:
                why = _why(error)
                if why != said:
                    _log.warning("the server stays away: %s", why)
                said = why
            else:
                self._suspected.clear()
                return

    async def _look_anew(self) -> None:
        """Raises what stands against it. It may have been started anew, and as something else."""
        can = await self._check_same()
        if (why := closed(await self._server.health())) is not None:
            raise why
        await self._prove_anew()
        self._can = can

    async def _check_same(self) -> Capabilities:
        can = await self._server.describe(self._model)
        if changed := self._can.differs(can):
            raise WrongServerError(f"its {changed} is not what it was; this executor must be started anew")
        return can

    async def _prove_anew(self) -> None:
        """It may have been started anew since, and have nothing of what it was given."""
        await self._prove()
        await self._on_back()


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
