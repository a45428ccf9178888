"""Whether the engine lives: asked of it, and read from a flag by a thread that a frozen loop cannot hold up.

poll, in a thread      `_check_health()`; one that does not answer in time is as bad as a no
flag, in a thread      `_fatal_error`, which newer versions set when a rank has died, and `is_shutdown()`, which is all
                       that older ones say: an error in their background threads shuts them down by themselves
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from weir_executor.trtllm.probe import Capabilities

_POLL_SECONDS, _FLAG_SECONDS = 1.0, 0.25
# The question goes to another process: on a busy machine it may take a while, and a hung one never answers.
_ANSWER_SECONDS = 30.0


class Supervisor:
    """`on_dead` is called once, on one of its threads, with what is wrong."""

    def __init__(self, llm: Any, can: Capabilities, on_dead: Callable[[Exception], None]) -> None:
        self._llm, self._on_dead = llm, on_dead
        self._stopped = threading.Event()
        self._told = threading.Lock()
        watches = [self._watch_flag, *([self._watch_health] if can.health_check else [])]
        self._threads = [threading.Thread(target=watch, name=watch.__name__, daemon=True) for watch in watches]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Nothing is told any more."""
        self._stopped.set()

    def _watch_flag(self) -> None:
        while not self._stopped.wait(_FLAG_SECONDS):
            if (error := _fatal_error(getattr(self._llm, "_executor", None))) is not None:
                self._tell(error)
                return

    def _watch_health(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            answer = _Answer(self._llm._check_health)
            if not answer.wait(_ANSWER_SECONDS):
                self._tell(RuntimeError(f"the engine has not said for {_ANSWER_SECONDS:g} s whether it is well"))
                return
            if answer.error is not None or not answer.value:
                self._tell(answer.error or RuntimeError("the engine says that it is not well"))
                return

    def _tell(self, error: Exception) -> None:
        if not self._stopped.is_set() and self._told.acquire(blocking=False):
            self._on_dead(error)


def _fatal_error(executor: Any) -> Exception | None:
    """By attributes alone: nothing is sent to processes that may be dead."""
    error = getattr(executor, "_fatal_error", None)
    if error is not None:
        return error if isinstance(error, Exception) else RuntimeError(str(error))
    is_shutdown = getattr(executor, "is_shutdown", None)
    return RuntimeError("the engine has shut itself down") if is_shutdown is not None and is_shutdown() else None


class _Answer:
    """A call on a thread of its own, which is left behind when it does not return."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._ask, args=(ask,), name="ask-engine-health", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def _ask(self, ask: Callable[[], Any]) -> None:
        try:
            self.value = ask()
        except Exception as error:
            self.error = error
        self._done.set()
