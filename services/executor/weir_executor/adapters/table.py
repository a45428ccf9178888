"""The adapters that this executor holds, by name: who is coming, who may be used, who is leaving.

    LOADING ──▶ READY ──▶ RETIRING ──▶ gone
       │                     │ nobody new may use it; gone with its last request
       └── failed, cancelled: gone

A name and a slot are taken from the first moment to the last, so nothing is loaded that has no room. Used from one
event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weir_chassis.errors import AlreadyExists, InvalidArgument, NotFound, Overloaded, Unsupported
from weir_executor.engine import AdapterInfo

MAX_NAME_BYTES = 128
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class HeldAdapter:
    """One entry. `info` is there once it is loaded; `live` counts the requests that hold it."""

    def __init__(self, name: str, gone: Callable[[HeldAdapter], None]) -> None:
        self.name, self._gone = name, gone
        self.info: AdapterInfo | None = None
        self.live = 0
        self.changed = asyncio.Event()  # `live` has, since whoever waits last cleared it
        self._retiring = False

    @property
    def usable(self) -> bool:
        return self.info is not None and not self._retiring

    def hold(self) -> None:
        assert self.usable, self.name
        self.live += 1

    def release(self) -> None:
        assert self.live > 0, self.name
        self.live -= 1
        self.changed.set()
        self._leave_when_idle()

    def retire(self) -> None:
        """Nobody new; gone as soon as nobody is left."""
        if not self._retiring:
            self._retiring = True
            self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        if self._retiring and not self.live:
            self._gone(self)


class AdapterTable:
    def __init__(self, max_adapters: int, unload: Callable[[str], None]) -> None:
        """`unload` gives a loaded adapter's memory back, when nothing uses it any more."""
        self.max_adapters, self._unload = max_adapters, unload
        self._by_name: dict[str, HeldAdapter] = {}

    def __iter__(self) -> Iterator[HeldAdapter]:
        """Those that requests may name."""
        return iter([held for held in self._by_name.values() if held.usable])

    def reserve(self, name: str) -> HeldAdapter:
        """A slot for an adapter that is going to be loaded. Raises what is wrong with that."""
        check_name(name)
        if not self.max_adapters:
            raise Unsupported("this executor was started without room for adapters")
        if name in self._by_name:
            raise AlreadyExists(name, f"an adapter {name!r} is loaded, or on its way")
        if len(self._by_name) >= self.max_adapters:
            raise Overloaded(f"{self.max_adapters} adapters are loaded already, as many as there is room for")
        held = self._by_name[name] = HeldAdapter(name, self._remove)
        return held

    def forget(self, held: HeldAdapter) -> None:
        """A slot whose adapter was not loaded."""
        assert held.info is None, held.name
        del self._by_name[held.name]

    def find(self, named: str) -> HeldAdapter:
        """By its name, or by its fingerprint, whatever its name is. Raises NotFound."""
        held = self._by_name.get(named)
        if held is not None and held.usable:
            return held
        for held in self:
            if held.info is not None and held.info.fingerprint == named:
                return held
        raise NotFound(named, f"adapter {named[:MAX_NAME_BYTES]!r} is not loaded here")

    @contextmanager
    def holding(self, named: str) -> Iterator[HeldAdapter | None]:
        """None where none is named."""
        held = self.find(named) if named else None
        if held is not None:
            held.hold()
        try:
            yield held
        finally:
            if held is not None:
                held.release()

    def _remove(self, held: HeldAdapter) -> None:
        del self._by_name[held.name]
        self._unload(held.name)


def check_name(name: str) -> None:
    """Raises InvalidArgument."""
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise InvalidArgument("name", f"{len(name.encode())} bytes; 1 to {MAX_NAME_BYTES}")
    if not name.isprintable() or " " in name:
        raise InvalidArgument("name", "must be printable and without spaces")
    if _FINGERPRINT.fullmatch(name):
        raise InvalidArgument("name", "must not look like a fingerprint: 32 hex characters")
