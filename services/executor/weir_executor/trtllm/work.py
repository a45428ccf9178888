"""Every output that the engine draws. Used on the engine's loop only.

Line ─▶ generate_async, one for each output ─▶ a task for each: results ─▶ Cursor ─▶ Line
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

from weir_chassis.errors import Internal, WeirError
from weir_executor.engine import EngineInfo, GenerationRequest
from weir_executor.foreign.line import Line
from weir_executor.foreign.live import LiveOutput, LiveRequest
from weir_executor.foreign.lives import Lives
from weir_executor.foreign.outlet import Outlet
from weir_executor.foreign.salts import private_salt, shared_salt, shares_blocks
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.refusals import first_line, refusal
from weir_executor.trtllm.sampling import sampling_arguments

_PRIORITIES: Final = 200.0  # ours are [-100, 100], the engine's [0, 1]


class Work(Line):
    """`die` is called with an error that is the engine's and nobody's in particular."""

    def __init__(
        self,
        llm: Any,
        library: Library,
        can: Capabilities,
        config: TrtConfig,
        info: EngineInfo,
        *,
        lives: Lives,
        outlet: Outlet,
        count_cached: Callable[[Sequence[bytes]], int],
        die: Callable[[Exception], None],
    ) -> None:
        super().__init__(
            lives,
            outlet,
            eos_token_ids=info.eos_token_ids,
            max_num_seqs=config.max_num_seqs,
            count_cached=count_cached,
        )
        self._llm, self._library, self._can, self._config, self._info = llm, library, can, config, info
        self._die = die
        self.adapters: dict[str, Any] = {}  # LoRARequest by name
        self._salts = count(1)

    def _begin_output(self, live: LiveRequest, output: LiveOutput) -> None:
        request = live.request
        sampling = sampling_arguments(request, output.index, self._info, self._can, self._library)
        arguments: dict[str, Any] = {
            "inputs": [*request.token_ids, *request.resumed.get(output.index, ())],
            "sampling_params": self._library.SamplingParams(**sampling),
            "lora_request": self.adapters.get(request.adapter),
            "streaming": True,
            "cache_salt": self._salt(request),
        }
        if self._can.priority:
            arguments["priority"] = 0.5 + request.priority / _PRIORITIES
        output.result = self._llm.generate_async(**arguments)
        self._follow_by(self._follow(live, output), live)

    def _ask_abort(self, live: LiveRequest, output: LiveOutput) -> None:  # noqa: ARG002
        output.result.abort()

    def _refusal(self, error: Exception) -> WeirError:
        return refusal(error, self._library)

    def _salt(self, request: GenerationRequest) -> str:
        """Prompts find one another's blocks where they name the same scope, and nobody's where they name none."""
        if shares_blocks(request, self._info.block_size):
            return shared_salt(request.cache_scope)
        return private_salt(next(self._salts))

    async def _follow(self, live: LiveRequest, output: LiveOutput) -> None:
        """One of the engine's requests, to its last result."""
        try:
            async for newest in output.result:
                if output.result is None:
                    return  # its place was given away
                finished = newest.finished
                self._tell(live, output, newest)
                if finished:
                    break
        except self._library.RequestError as error:
            live.error = live.error or Internal(f"the engine failed the request: {first_line(error)}")
            self._withdraw(live, output)
        except Exception as error:
            self._die(error)
            return
        self._close(live, output)

    def _tell(self, live: LiveRequest, output: LiveOutput, newest: Any) -> None:
        """The engine will change the same object with the next step."""
        if live.cached_tokens is None:
            live.cached_tokens = int(newest.cached_tokens or 0)
        self._take(live, output, output.cursor.advance(newest.outputs[0]))
