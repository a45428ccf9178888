"""The seam between the step loop and the adapters that its worker can compute with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from weir_chassis.errors import Unsupported
from weir_executor.adapters.config import AdapterConfig
from weir_executor.engine import AdapterInfo


class Adapters(Protocol):
    """Those that are loaded. Called from any thread; see `Engine.load_adapter`."""

    def __contains__(self, name: str) -> bool: ...

    def load(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo: ...

    def unload(self, name: str) -> None: ...


class NoAdapters:
    def __contains__(self, name: str) -> bool:
        return False

    def load(self, name: str, *_: object) -> AdapterInfo:
        raise Unsupported(f"adapter {name!r}: this engine was started without room for adapters")

    def unload(self, name: str) -> None:
        raise AssertionError(f"adapter {name!r} was never loaded")
