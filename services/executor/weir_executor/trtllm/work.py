"""Every output that the engine draws. Used on the engine's loop only.

    Line ─▶ Asker, once for each output ─▶ a task for each: results ─▶ Cursor ─▶ Line

A request with a stored prefix comes into the line once that is where the engine's processes see it.

Of a prompt that is handed off each output ends after its first token, and its blocks stay (`HeldPrompts`). Of one that
is taken over the engine fetches the blocks; when they do not come in time, the prompt is computed here all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from weir_chassis.errors import Internal, WeirError
from weir_executor.engine import EngineInfo
from weir_executor.foreign.line import Line
from weir_executor.foreign.live import NOTHING_LEFT, Left, LiveOutput, LiveRequest, News
from weir_executor.foreign.lives import Lives
from weir_executor.foreign.outlet import Outlet
from weir_executor.foreign.salts import shares_blocks
from weir_executor.request import StoredPrefix
from weir_executor.step_output import FinishReason
from weir_executor.trtllm.asking import Asked, Asker, Part
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.connector.staging import Staging
from weir_executor.trtllm.cursor import Cursor
from weir_executor.trtllm.guides import check_guide
from weir_executor.trtllm.handover import pack
from weir_executor.trtllm.held_prompts import HeldPrompts
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.refusals import first_line, refusal
from weir_executor.trtllm.strays import Strays

_log = logging.getLogger(__name__)


class Work(Line):
    """`die` is called with an error that is the engine's and nobody's in particular."""

    def __init__(
        self,
        asker: Asker,
        library: Library,
        can: Capabilities,
        config: TrtConfig,
        info: EngineInfo,
        *,
        lives: Lives,
        outlet: Outlet,
        count_cached: Callable[[Sequence[bytes]], int],
        die: Callable[[Exception], None],
        staging: Staging | None = None,
    ) -> None:
        super().__init__(
            lives,
            outlet,
            eos_token_ids=info.eos_token_ids,
            max_num_seqs=config.max_num_seqs,
            count_cached=count_cached,
        )
        self._asker, self._library, self._can, self._config, self._info = asker, library, can, config, info
        self._die, self._staging = die, staging
        self.held, self._strays = HeldPrompts(info.num_blocks), Strays()

    def release_held(self, key: int) -> None:
        """The blocks that an ended request left. Unknown keys are ignored."""
        if self._lives.find(key) is None and self.held.release(key):
            self._outlet.soon()

    def end_all(self, error: WeirError) -> None:
        self._strays.clear()
        super().end_all(error)

    # ── to the engine ─────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, live: LiveRequest) -> None:
        if self._staging is not None and shares_blocks(live.request, self._info.block_size):
            self._staging.note_scope(live.request.cache_scope)
        if self._staging is None or live.request.stored_prefix is None:
            super().enter(live)
        else:
            self._follow_by(self._stage(live, live.request.stored_prefix, self._staging), live)

    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        if not self._finds_blocks_later(live, output):
            self._ask(live, output, self._part(live, output))

    def _finds_blocks_later(self, live: LiveRequest, output: LiveOutput) -> bool:
        """One output goes ahead, and the others find the prompt's blocks then: it is computed once, not `n` times."""
        shares = self._config.prefix_cache and len(live.request.token_ids) > self._info.block_size
        if not shares or live.handed or live.first_token_at is not None:
            return False
        return any(other.result is not None for other in live.outputs if other is not output)

    def _take(self, live: LiveRequest, output: LiveOutput, news: News) -> None:
        super()._take(live, output, news)
        if news.token_ids:
            self._begin_outputs(live)  # those that have let it go ahead

    def _close(self, live: LiveRequest, output: LiveOutput) -> None:
        super()._close(live, output)
        self._begin_outputs(live)

    def _give_up(self, live: LiveRequest, output: LiveOutput) -> None:
        super()._give_up(live, output)
        self._begin_outputs(live)

    def _part(self, live: LiveRequest, output: LiveOutput) -> Part:
        """Whoever hands off wants the first token, and the blocks to stay where there are any and room for them."""
        request = live.request
        if not request.hand_off:
            # Another engine's word is on how to go on after the first token, and no later one.
            is_first = len(request.resumed.get(output.index, ())) == 1
            return Part.GENERATION if is_first and output.index in live.handed else Part.WHOLE
        is_last = request.max_tokens - output.num_tokens == 1
        return Part.CONTEXT if not is_last and self._reserves(live) else Part.FIRST

    def _reserves(self, live: LiveRequest) -> bool:
        full_blocks, tokens_over = divmod(len(live.request.token_ids), self._info.block_size)
        return full_blocks > 0 and self.held.reserve(live.key, live.request.n * (full_blocks + bool(tokens_over)))

    def _ask(self, live: LiveRequest, output: LiveOutput, part: Part) -> None:
        request = live.request
        known = request.resumed.get(output.index, ()) if part is Part.GENERATION else ()
        output.cursor = Cursor(min(self._info.eos_token_ids), request.sampling.top_logprobs, known)
        output.asked = Asked(part)
        output.result = self._asker.ask(live, output.index, part)
        self._follow_by(self._follow(live, output, output.result), live)
        if part is Part.GENERATION:
            self._later(
                self._config.fetch_seconds(len(request.token_ids)), self._fetch_late, live, output, output.result
            )

    def _ask_abort(self, live: LiveRequest, output: LiveOutput) -> None:  # noqa: ARG002
        if self._must_wait(output):
            output.asked.abort_due = True
        else:
            output.result.abort()

    def _must_wait(self, output: LiveOutput) -> bool:
        """Until its blocks have come: not every version survives an abort before."""
        return output.asked.is_fetching and not self._can.cancels_transfers

    def _abort_seconds(self, output: LiveOutput) -> float:
        return super()._abort_seconds(output) + (self._config.transfer_seconds if self._must_wait(output) else 0.0)

    def _num_strays(self) -> int:
        return len(self._strays)

    def _refusal(self, error: Exception) -> WeirError:
        if self._library.EngineDeadError is not None and isinstance(error, self._library.EngineDeadError):
            self._die(error)
        return refusal(error, self._library)

    def _later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, call, *args)

    async def _stage(self, live: LiveRequest, prefix: StoredPrefix, staging: Staging) -> None:
        """Whether it is staged or not, it goes on; unless it was aborted meanwhile."""
        if await staging.stage(live.request):
            size = self._info.block_size
            live.staged_tokens = prefix.first_block * size, (prefix.first_block + len(prefix.blocks)) * size
        live.request = replace(live.request, stored_prefix=None)  # what is large is in one place
        if self._lives.find(live.key) is live:
            super().enter(live)
        else:
            staging.drop(live.key)

    # ── from the engine ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, live: LiveRequest, output: LiveOutput, result: Any) -> None:
        """One of the engine's requests, to its last result."""
        try:
            async for newest in result:
                finished = newest.finished
                if output.result is result:
                    self._hear(live, output, newest)
                elif result in self._strays:
                    self._strays.abort(result)  # its blocks have come after all
                else:
                    return  # its place was given away
                if finished:
                    break
        except self._library.RequestError as error:
            if output.result is result:
                self._fail(live, output, error)
        except Exception as error:
            self._die(error)
            return
        if output.result is result:
            self._close(live, output)
        else:
            self._strays.remove(result)
            self._conclude(live)
            self._pump()

    def _hear(self, live: LiveRequest, output: LiveOutput, newest: Any) -> None:
        """What is not understood fails the request, and not the engine: its next caller would meet the same."""
        try:
            self._tell(live, output, newest)
        except Exception as error:
            if output.over:
                return  # nobody listens
            _log.exception("the engine's words are not understood")
            live.error = live.error or Internal(f"the engine's words are not understood: {first_line(error)}")
            self._withdraw(live, None)

    def _tell(self, live: LiveRequest, output: LiveOutput, newest: Any) -> None:
        """The engine will change the same object with the next step."""
        if live.cached_tokens is None:
            live.cached_tokens = int(newest.cached_tokens or 0)
        try:
            news = output.cursor.advance(newest.outputs[0])
        except ValueError:
            if not output.asked.is_fetching:
                raise
            self._stray(live, output, "it goes on after other tokens than those that were drawn")
            return
        if output.asked.is_fetching:
            output.asked.has_spoken = live.fetched = True
            if output.asked.abort_due:
                output.result.abort()
        if live.request.hand_off and _goes_on(live, output, news):
            self._take(live, output, replace(news, finish_reason=None))
            output.over, output.left = True, newest
        else:
            self._take(live, output, news)
        if live.first_token_at is not None:
            self._drop_staged(live)

    def _fail(self, live: LiveRequest, output: LiveOutput, error: Exception) -> None:
        """The engine has failed one of its requests. One whose blocks did not come has a second chance."""
        if output.asked.is_fetching and not output.over:
            self._compute(live, output, first_line(error))
        else:
            live.error = live.error or Internal(f"the engine failed the request: {first_line(error)}")
            self._withdraw(live, output)

    # ── blocks from another engine, and for others ────────────────────────────────────────────────────────────────────

    def _fetch_late(self, live: LiveRequest, output: LiveOutput, result: Any) -> None:
        if output.result is result and output.asked.is_fetching and not output.over:
            self._stray(live, output, "its blocks have not come in time")

    def _stray(self, live: LiveRequest, output: LiveOutput, why: str) -> None:
        """The output goes on without this result."""
        result, must_wait = output.result, self._must_wait(output)
        self._strays.add(result)
        self._later(self._abort_seconds(output), self._give_up_stray, result)
        if not must_wait:
            self._strays.abort(result)
        self._compute(live, output, why)

    def _give_up_stray(self, result: Any) -> None:
        if self._strays.remove(result):
            self._pump()

    def _compute(self, live: LiveRequest, output: LiveOutput, why: str) -> None:
        """Its prompt, here, and then on after the tokens that it has."""
        _log.warning("a prompt that was handed over is computed: %s", why)
        output.result = None
        try:
            check_guide(replace(live.request, handed_state=b""), self._config.guided_backend)
            self._ask(live, output, Part.WHOLE)
        except Exception as error:  # what the engine says of a request before it has it
            live.error = live.error or self._refusal(error)
            self._withdraw(live, output)

    def _leave(self, live: LiveRequest) -> Left:
        self._drop_staged(live)
        full_blocks = len(live.request.token_ids) // self._info.block_size
        if not live.request.hand_off:
            fetched = full_blocks * self._info.block_size if live.fetched else 0
            return Left(loaded_tokens=fetched or live.staged_hit_tokens)
        state = self._pack(live)
        results = [o.left for o in live.outputs if o.left is not None and o.asked.part is Part.CONTEXT]
        if state:
            self.held.hold(live.key, results)
            return Left(full_blocks, state)
        self.held.release(live.key)
        for result in results:
            result.abort()
        return Left(0) if live.goes_on else NOTHING_LEFT

    def _pack(self, live: LiveRequest) -> bytes:
        """What another engine goes on by; empty: there is nothing, or nobody wants it."""
        left = {output.index: output for output in live.outputs if output.left is not None}
        if not live.goes_on or any(output.asked.part is not Part.CONTEXT for output in left.values()):
            return b""
        told = {index: getattr(output.left.outputs[0], "disaggregated_params", None) for index, output in left.items()}
        if None in told.values():
            return b""
        with suppress(TypeError, ValueError):  # of a version that says it in a way that nobody has seen
            return pack(told)
        return b""

    def _drop_staged(self, live: LiveRequest) -> None:
        """The engine has taken it, or will not."""
        if self._staging is not None:
            self._staging.drop(live.key)


def _goes_on(live: LiveRequest, output: LiveOutput, news: News) -> bool:
    """Elsewhere, after these tokens: the length that it came to is the prefill's, unless it wanted no more."""
    if output.over or not news.token_ids or news.finish_reason not in (None, FinishReason.LENGTH):
        return False
    return output.num_tokens + len(news.token_ids) < live.request.max_tokens
