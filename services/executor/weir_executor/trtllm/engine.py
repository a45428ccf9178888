"""`Engine` on `tensorrt_llm.LLM`: the waist's calls, from any thread, to an event loop of the engine's own.

    submit, abort ─▶ (any thread) ─▶ the loop: Work ─▶ the engine ─▶ Work ─▶ Outlet ─▶ deliver(StepOutput)
                                     Observer: statistics and block events ──▶┘
                                     Supervisor, on threads of its own: is it alive?

Results are consumed on the loop on which they were asked for, so the engine's thread is a loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from weir_chassis.errors import WorkerLost
from weir_executor.adapters.config import AdapterConfig
from weir_executor.engine import AdapterInfo, Deliver, EngineInfo, EngineLoad, Wants
from weir_executor.foreign.block_names import BlockNames
from weir_executor.foreign.engine import ForeignEngine
from weir_executor.foreign.live import begin
from weir_executor.foreign.load_report import load
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.foreign.outlet import Outlet
from weir_executor.request import GenerationRequest
from weir_executor.request_checks import check_request
from weir_executor.step_output import KvEvent
from weir_executor.trtllm.asking import Asker
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.connector.staging import Staging
from weir_executor.trtllm.cursor import Cursor
from weir_executor.trtllm.guides import check_guide
from weir_executor.trtllm.handover import unpack
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.observer import Observer
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.refusals import first_line
from weir_executor.trtllm.sampling import check_sampling
from weir_executor.trtllm.supervisor import Supervisor
from weir_executor.trtllm.work import Work

_log = logging.getLogger(__name__)
_WIND_UP_SECONDS, _SHUTDOWN_SECONDS, _LOOP_SECONDS = 10.0, 30.0, 5.0


class TrtEngine(ForeignEngine):
    """See `Engine`. `llm` is an `LLM` that is ready, with `info` as it was told."""

    _work: Work

    def __init__(
        self,
        llm: Any,
        library: Library,
        can: Capabilities,
        config: TrtConfig,
        info: EngineInfo,
        *,
        loop: LoopThread,
        end_process: Callable[[], object],
        staging: Staging | None = None,
    ) -> None:
        """`loop`: on which it was warmed up. `end_process`: what is done, by a thread, when it does not end. `staging`:
        of a connector's prefixes. The engine closes loop and staging."""
        super().__init__(info, config.max_waiting, loop)
        self._llm, self._library, self._can, self._config = llm, library, can, config
        self._observer = Observer(llm, info.block_size, info.num_blocks, has_events=config.prefix_cache)
        self._outlet = Outlet(self._tell_events, self._show_load)
        how = config.transceiver
        machine_id = how.machine_id if how is not None else 0
        self._asker = Asker(llm, library, can, info, machine_id=machine_id, retention=config.retention)
        self._work = Work(
            self._asker,
            library,
            can,
            config,
            info,
            lives=self._lives,
            outlet=self._outlet,
            count_cached=self.cached_prefix_blocks,
            die=self.die,
            staging=staging,
        )
        self._staging = staging
        self._load = self._make_load()
        self._adapter_ids = count(1)
        self._end_process = end_process
        self._supervisor = Supervisor(llm, can, self.die)

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:  # noqa: ARG002
        """`wants` is never asked: the engine's blocks go to the store by a connector, if they go."""
        self._outlet.deliver = deliver
        self._supervisor.start()
        self._loop.run(self._observer.run(self._outlet.soon, self._outlet.events))
        if self._staging is not None:
            self._loop.run(self._staging.run())

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        check_sampling(request)
        check_guide(request, self._config.guided_backend)
        self._check_adapter(request)
        end_id, top = min(self._info.eos_token_ids), request.sampling.top_logprobs
        live = begin(request, lambda _: Cursor(end_id, top), time.monotonic())
        live.handed, live.salt = self._handed(request), self._asker.salt(request)
        self._lives.enter(live)
        self._loop.call(self._work.enter, live)

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:  # noqa: ARG002
        """The engines move blocks between them: see `handover.py`."""
        return None

    def release_held(self, key: int) -> None:
        self._loop.call(self._work.release_held, key)

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        """The engine itself reads the files with the first request that names it; what is wrong with them ends that."""
        fingerprint, num_weights = self._read_adapter(name, directory, note)
        self._asker.adapters[name] = self._library.LoRARequest(name, next(self._adapter_ids), str(directory))
        return AdapterInfo(name, config.rank, fingerprint, num_weights)

    def unload_adapter(self, name: str) -> None:
        """The engine forgets it when it needs the room: ids are never used twice."""
        del self._asker.adapters[name]

    def die(self, error: Exception) -> None:
        """The engine is of no more use: everybody is told, and nobody new is let in. Any thread, any time."""
        if self._lives.fail(error):
            _log.error("the engine died: %s: %s", type(error).__name__, error)
            self._loop.call(self._work.end_all, WorkerLost(f"the engine died: {type(error).__name__}"))

    def close(self) -> None:
        if not self._lives.close():
            return
        self._supervisor.stop()
        with suppress(TimeoutError):
            self._loop.run(self._work.wind_up()).result(_WIND_UP_SECONDS)
        self._shut_down()
        if not self._loop.close(_LOOP_SECONDS):
            _log.error("the engine's loop does not end; it is left behind")
        if self._staging is not None:
            self._staging.close()

    @property
    def _names(self) -> BlockNames:
        return self._observer.translator.names

    @property
    def _adapter_names(self) -> Collection[str]:
        return self._asker.adapters

    def _handed(self, request: GenerationRequest) -> Mapping[int, Mapping[str, Any]]:
        """What another engine has said of its prompt, if this one can go on by it."""
        how = self._config.transceiver
        if not request.handed_state or how is None or not how.takes_over:
            return {}
        try:
            return unpack(request.handed_state, self._can.handover_fields, self._library.Logprob)
        except (TypeError, ValueError) as error:
            _log.warning("a prompt that was handed over is computed: %s", first_line(error))
            return {}

    async def _tell_events(self) -> None:
        events: list[KvEvent] = await self._observer.read_events()
        self._outlet.events(events)

    def _make_load(self) -> EngineLoad:
        return load(
            self._observer.iteration,
            self._work.running,
            self._work.waiting,
            total_blocks=self._info.num_blocks,
            cached_blocks=len(self._observer.translator.names),
            # A chunk of a long prompt is progress too, and no token for a while.
            progress=self._outlet.progress + self._observer.iteration.prefill_tokens,
            steps=self._outlet.steps,
            chunk_tokens=self._config.max_batched_tokens,
            prefill_token_seconds=None,
            held_blocks=self._work.held.num_blocks,
        )

    def _shut_down(self) -> None:
        """Bounded; an engine that has died is not asked, and takes the process with it when it keeps it."""
        if self._lives.error is None:
            ending = threading.Thread(target=self._shut_down_llm, name="shut-down-engine", daemon=True)
            ending.start()
            ending.join(_SHUTDOWN_SECONDS)
            if not ending.is_alive():
                return
        _log.error("the engine's processes do not end by themselves; ours will not wait for them")
        timer = threading.Timer(_SHUTDOWN_SECONDS, self._end_process)
        timer.daemon = True
        timer.start()

    def _shut_down_llm(self) -> None:
        with suppress(Exception):
            self._llm.shutdown()
