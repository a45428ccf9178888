"""The models of a host, by name: which come, which serve, which leave.

    LOADING ──▶ SERVING ──▶ UNLOADING ──▶ gone
       │           └── ended again and again: FAILED ── unloaded ──▶ gone
       └── failed, given up: gone

A name, a place and a port are taken from the first moment to the last. Used from one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.errors import AlreadyExists, InvalidArgument, NotFound, Overloaded

MAX_NAME_BYTES = 128


class State(Enum):
    LOADING = "loading"
    SERVING = "serving"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(eq=False, slots=True)
class Hosted:
    """`directory` as it was asked for, `path` where that is; `version` is known once it serves."""

    model: str
    directory: str
    path: Path
    revision: str
    address: str
    state: State = State.LOADING
    version: ModelVersion = field(default_factory=ModelVersion)
    problem: str = ""
    restarts: int = 0


class HostedModels:
    def __init__(self, max_models: int) -> None:
        self.max_models = max_models
        self._by_name: dict[str, Hosted] = {}

    def __iter__(self) -> Iterator[Hosted]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def reserve(self, model: str, make: Callable[[], Hosted]) -> Hosted:
        """A name and a place for what `make` makes. Raises InvalidArgument, AlreadyExists, Overloaded."""
        if not 1 <= len(model.encode()) <= MAX_NAME_BYTES:
            raise InvalidArgument("model", f"{len(model.encode())} bytes; 1 to {MAX_NAME_BYTES}")
        if model in self._by_name:
            raise AlreadyExists(model, f"a model {model!r} is {self._by_name[model].state.value} here")
        if len(self._by_name) >= self.max_models:
            raise Overloaded(f"{len(self._by_name)} models are here, the limit is {self.max_models}")
        hosted = self._by_name[model] = make()
        return hosted

    def leaving(self, model: str) -> Hosted:
        """It takes nothing new from now on. Raises NotFound, also for one that is on its way in or out."""
        hosted = self._by_name.get(model)
        if hosted is None or hosted.state in (State.LOADING, State.UNLOADING):
            raise NotFound(model, f"no model {model!r} is loaded here")
        hosted.state = State.UNLOADING
        return hosted

    def forget(self, hosted: Hosted) -> None:
        if self._by_name.get(hosted.model) is hosted:
            del self._by_name[hosted.model]
