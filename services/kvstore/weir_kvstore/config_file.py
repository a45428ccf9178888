"""The file of tiers, read at the start and followed while the store runs: on SIGHUP, and when it has changed.

An invalid file, and what cannot change in a running store, leaves the old in force, is logged once, and is told by
GetStats until the file is another one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_kvstore.tiers_config import TiersConfig, TiersConfigError, diff, parse

# Some thousand tenants by name; a mistaken path to something big is refused and not read.
_MAX_FILE_BYTES: Final = 1 << 20


def read_config(path: Path) -> TiersConfig:
    """Raises TiersConfigError, also for a file that cannot be read."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TiersConfigError(f"{path.stat().st_size} bytes, the limit is {_MAX_FILE_BYTES}")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TiersConfigError) as error:
        raise TiersConfigError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells two versions of a file apart without reading them. An editor may replace the file or write into it."""

    modified_ns: int
    size_bytes: int
    inode: int


_NEVER: Final = _Stamp(-1, -1, -1)


class ConfigFile:
    """Follows one file. `apply` is called with what is to be in force, and returns why some of it cannot be."""

    def __init__(self, path: Path, in_force: TiersConfig, apply: Callable[[TiersConfig], Sequence[str]]) -> None:
        self._path = path
        self._apply = apply
        self._seen: _Stamp | None = _NEVER  # None: there was no file
        self.in_force = in_force
        self.error = ""  # of the newest version; empty: it is in force wholly

    async def follow(self, clock: Clock, *, poll_seconds: float) -> None:
        """For ever."""
        while True:
            await clock.sleep(poll_seconds)
            await self.look()

    def forget(self) -> None:
        """The next look reads the file, changed or not."""
        self._seen = _NEVER

    async def look(self) -> None:
        """Reads the file if it is another than before, and puts in force what can be."""
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            config = await asyncio.to_thread(read_config, self._path)
        except TiersConfigError as error:
            self._refuse([str(error)])
        else:
            self._take(config)

    def _take(self, config: TiersConfig) -> None:
        changes = diff(self.in_force, config)
        refused = list(changes.refused)
        if changes.config != self.in_force:
            refused += self._apply(changes.config)
            self.in_force = changes.config
            get_logger().info("tiers_reloaded", path=str(self._path))
        self._refuse(refused)

    def _refuse(self, reasons: Sequence[str]) -> None:
        self.error = "\n".join(reasons)
        if reasons:
            get_logger().error("tiers_refused", path=str(self._path), error=self.error)


@contextmanager
def reread_on_hangup(file: ConfigFile) -> Iterator[None]:
    """SIGHUP, as daemons have it. Only a process's main thread hears signals: elsewhere the file is polled only."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, file.forget)
    except (ValueError, RuntimeError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)
