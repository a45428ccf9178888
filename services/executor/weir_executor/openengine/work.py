"""Every output that the server draws: one call each. Used on the engine's loop only.

Line ─▶ Generate ─▶ a task for each: events ─▶ Cursor ─▶ Line
abort ─▶ Abort ─▶ the call's own last word, or the call is cancelled
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Final

import grpc

from weir_chassis.errors import Internal, WeirError, WorkerLost
from weir_executor.engine import EngineInfo
from weir_executor.foreign.line import Line
from weir_executor.foreign.live import LiveOutput, LiveRequest
from weir_executor.foreign.lives import Lives
from weir_executor.foreign.outlet import Outlet
from weir_executor.foreign.salts import private_salt, shares_blocks
from weir_executor.openengine.capabilities import Capabilities
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.cursor import BadAnswerError, Cursor
from weir_executor.openengine.errors import from_event, from_status
from weir_executor.openengine.request import metadata, to_message
from weir_executor.openengine.server import Server, Stream
from weir_executor.step_output import FinishReason

_log = logging.getLogger(__name__)
# It may be gone; or it was started anew, and does not know the adapter any more.
_SUSPICIOUS: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
# For the last word on a request that the server says it ends; then the call is cancelled.
_ABORT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.25
# For the last word, with its usage, on an output whose last token has come: it is due with the next step.
_LAST_WORD_SECONDS: Final = 10.0


class _Call:
    """One output's. `ended` once nothing more comes; `why` the reason that it was cut off here, if it was.

    `has_all`: its last token has come.
    """

    def __init__(self, request_id: str, stream: Stream) -> None:
        self.request_id, self.stream = request_id, stream
        self.heard_at = time.monotonic()
        self.ended = asyncio.Event()
        self.why: WeirError | None = None
        self.is_cut = self.has_all = False

    def cut(self, why: WeirError | None = None) -> None:
        """Ends it without the server's last word."""
        self.why, self.is_cut = self.why or why, True
        self.stream.cancel()


class Work(Line):
    """`suspect` is called when a call says that the server may be gone, or may stand still."""

    def __init__(
        self,
        server: Server,
        can: Capabilities,
        config: OpenEngineConfig,
        info: EngineInfo,
        *,
        lives: Lives,
        outlet: Outlet,
        count_cached: Callable[[Sequence[bytes]], int],
        note_request: Callable[[str, bytes], None],
        suspect: Callable[[], None],
        run_id: str,
    ) -> None:
        """`run_id`: sets our request ids apart from those of other clients of the server."""
        super().__init__(
            lives,
            outlet,
            eos_token_ids=info.eos_token_ids,
            max_num_seqs=info.max_num_seqs,
            count_cached=count_cached,
        )
        self._server, self._can, self._config, self._info = server, can, config, info
        self._note_request, self._suspect, self._run_id = note_request, suspect, run_id
        self._numbers = count(1)
        self._calls: set[_Call] = set()
        self.prefill_tokens = self.decode_tokens = 0

    async def watch(self) -> None:
        """For as long as the engine lives: a call in which nothing moves ends here, and the server is looked at."""
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._config.stall_seconds))
            now = time.monotonic()
            for call in list(self._calls):
                self._look_at(call, now - call.heard_at)

    def _look_at(self, call: _Call, silent_seconds: float) -> None:
        if call.has_all:
            if silent_seconds > _LAST_WORD_SECONDS:
                call.cut()
        elif silent_seconds > self._config.stall_seconds:
            why = f"the server has said nothing for {self._config.stall_seconds:g} s"
            _log.error("%s: %s", call.request_id, why)
            call.cut(WorkerLost(why))
            self._suspect()

    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        request, request_id = live.request, f"{self._run_id}-{next(self._numbers)}"
        message = to_message(
            request, output.index, request_id, self._can, self._config, private_salt=private_salt(request_id)
        )
        shared = shares_blocks(request, self._info.block_size)
        self._note_request(request_id, request.cache_scope if shared else b"")
        output.result = _Call(request_id, self._server.generate(message, metadata(request, self._can)))
        self._calls.add(output.result)
        self._follow_by(self._follow(live, output, output.result), live)

    def _ask_abort(self, live: LiveRequest, output: LiveOutput) -> None:
        self._follow_by(self._abort(output.result), live)

    def _refusal(self, error: Exception) -> WeirError:
        return error if isinstance(error, WeirError) else Internal(f"the request has no form there: {error}")

    async def _abort(self, call: _Call) -> None:
        """Before the server has the request it knows no such thing: then only its call can be ended."""
        if not call.ended.is_set() and await self._server.abort(call.request_id):
            with suppress(TimeoutError):
                async with asyncio.timeout(_ABORT_SECONDS):
                    await call.ended.wait()
        if not call.ended.is_set():
            call.cut()

    async def _follow(self, live: LiveRequest, output: LiveOutput, call: _Call) -> None:
        """One call, to its last event or its end."""
        try:
            await self._read(live, output, call)
        except asyncio.CancelledError:
            if not call.is_cut:
                raise  # it is the task that is cancelled
            self._fail(live, output, call.why)
        except grpc.aio.AioRpcError as error:
            self._fail(live, output, call.why or from_status(error.code(), error.details() or ""))
            if error.code() in _SUSPICIOUS:
                self._suspect()
        except BadAnswerError as error:
            _log.error("%s: %s", call.request_id, error)
            self._fail(live, output, Internal(f"the server's answer: {error}"))
        finally:
            call.stream.cancel()
            call.ended.set()
            self._calls.discard(call)
        self._close(live, output)

    async def _read(self, live: LiveRequest, output: LiveOutput, call: _Call) -> None:
        cursor = output.cursor
        assert isinstance(cursor, Cursor)
        async for told in call.stream:
            call.heard_at = time.monotonic()
            if output.result is not call:
                return  # its place was given away
            if told.request_id not in ("", call.request_id):
                raise BadAnswerError("words on another request, which may be another tenant's")
            if told.HasField("usage") and told.usage.HasField("cached_prompt_tokens"):
                live.cached_tokens = max(live.cached_tokens or 0, told.usage.cached_prompt_tokens)
            if told.WhichOneof("event") == "error":
                self._fail(live, output, from_event(told.error))
                return
            event, was_over = told.WhichOneof("event"), cursor.over
            news = cursor.advance(told)
            call.has_all = cursor.over
            if news.finish_reason is FinishReason.CANCELLED and not output.over:
                self._fail(live, output, WorkerLost("the server cancelled the request"))
                return
            self._count(live, output, len(news.token_ids))
            self._take(live, output, news)
            # After the token that ends it comes its last word, with the usage; or it goes on, and is not listened to.
            if event == "finished" or (event == "token" and was_over):
                return

    def _count(self, live: LiveRequest, output: LiveOutput, tokens: int) -> None:
        if tokens and output.num_tokens == len(live.request.resumed.get(output.index, ())):
            self.prefill_tokens += len(live.request.token_ids)
        self.decode_tokens += tokens

    def _fail(self, live: LiveRequest, output: LiveOutput, error: WeirError | None) -> None:
        """Its request has failed, unless nobody waits for this output any more."""
        if not output.over and error is not None:
            live.error = live.error or error
            self._withdraw(live, output)
