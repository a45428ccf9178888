"""What lies between the fake LLMs of this process: one that decodes fetches a prompt's blocks from one that prefilled.

    context_only ─▶ Pins.pin ─▶ … (fetched, or its time is over) ─▶ free
                        ▲
    generation_only ─▶ Fetch.step, some steps long ─▶ fetched | failed | on the way

Blocks stay pinned until they are fetched: nobody is told that whoever wanted them has died, and without a time limit
they stay for ever.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from fakes.trtllm.pool import Held

_FETCH_STEPS = 3
_numbers = count(1)


def get_global_disagg_request_id(node_id: int, process_id: int) -> int:
    """As of 1.3.0rc22: 8 bits of a node, 6 of a process, and a counter."""
    assert 0 <= node_id < 256, node_id
    assert 0 <= process_id < 64, process_id
    return (next(_numbers) << 14) | (node_id << 6) | process_id


def may_cancel() -> bool:
    """Whether an abort is safe while blocks are on the way, and frees pinned ones."""
    return os.environ.get("TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL") == "1"


class Outcome(Enum):
    FETCHED = "fetched"
    FAILED = "failed"
    ON_THE_WAY = "on the way"


@dataclass(eq=False)
class Pins:
    """Of one LLM. Used under its lock; `take` by other LLMs' threads too, which must not wait for that."""

    free: Callable[[Held], None]
    timeout_seconds: float | None
    is_up: bool = True
    name: str = field(default_factory=lambda: f"fake-{next(_numbers)}")
    _pinned: dict[int, tuple[Held, float]] = field(default_factory=dict)
    _taken: deque[Held] = field(default_factory=deque)

    def __post_init__(self) -> None:
        _fabric[self.name] = self

    def __len__(self) -> int:
        return len(self._pinned) + len(self._taken)

    def pin(self, request_id: int, held: Held) -> bytes:
        """The opaque state by which it is found."""
        self._pinned[request_id] = (held, time.monotonic())
        return json.dumps({"engine": self.name, "request": request_id}).encode()

    def take(self, request_id: int) -> bool:
        """Whether they were here. They are free with the next look."""
        held, _ = self._pinned.pop(request_id, (None, 0.0))
        if held is not None:
            self._taken.append(held)
        return held is not None

    def look(self) -> None:
        """Frees what was taken, and what has waited for too long."""
        if self.timeout_seconds is not None:
            for request_id, (_, since) in list(self._pinned.items()):
                if time.monotonic() - since > self.timeout_seconds:
                    self.take(request_id)
        while self._taken:
            self.free(self._taken.popleft())


_fabric: WeakValueDictionary[str, Pins] = WeakValueDictionary()


class Fetch:
    """A prompt's blocks on their way. `hangs`: to the other side nothing can be sent, and nobody notices."""

    def __init__(self, opaque_state: bytes, timeout_seconds: float | None) -> None:
        told: dict[str, Any] = json.loads(opaque_state)
        self._engine, self._request_id = told["engine"], told["request"]
        self._steps, self._since, self._timeout_seconds = 0, time.monotonic(), timeout_seconds

    def step(self, *, hangs: bool) -> Outcome:
        self._steps += 1
        if hangs:
            late = self._timeout_seconds is not None and time.monotonic() - self._since > self._timeout_seconds
            return Outcome.FAILED if late else Outcome.ON_THE_WAY
        pins = _fabric.get(self._engine)
        if pins is None or not pins.is_up:
            return Outcome.FAILED
        if self._steps < _FETCH_STEPS:
            return Outcome.ON_THE_WAY
        return Outcome.FETCHED if pins.take(self._request_id) else Outcome.FAILED
