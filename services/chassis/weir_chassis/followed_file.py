"""A configuration file, read at the start and followed while the service runs: on SIGHUP, and when it has changed.

An invalid file, and what cannot change in a running service, leaves the old in force, is logged once, and stays in
`error` until the file is another one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_chassis.toml_config import ConfigError

# Some thousand tenants by name; a mistaken path to something big is refused and not read.
_MAX_FILE_BYTES: Final = 1 << 20

C = TypeVar("C")


def read_config(path: Path, parse: Callable[[str], C]) -> C:
    """Raises ConfigError, also for a file that cannot be read."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path.stat().st_size} bytes, the limit is {_MAX_FILE_BYTES}")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells two versions of a file apart without reading them. An editor may replace the file or write into it."""

    modified_ns: int
    size_bytes: int
    inode: int


_NEVER: Final = _Stamp(-1, -1, -1)


class FollowedFile(Generic[C]):
    """Follows one file. `apply` is given what it says when that is another than what is in force.

    It returns what is in force from then on, and why that is not all of what the file says, a line each.
    """

    def __init__(
        self, path: Path, parse: Callable[[str], C], in_force: C, apply: Callable[[C], tuple[C, Sequence[str]]]
    ) -> None:
        self._path, self._parse, self._apply = path, parse, apply
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
            config = await asyncio.to_thread(read_config, self._path, self._parse)
        except ConfigError as error:
            self._refuse([str(error)])
        else:
            self._take(config)

    def _take(self, config: C) -> None:
        before, refused = self.in_force, list[str]()
        if config != before:
            self.in_force, reasons = self._apply(config)
            refused += reasons
        if self.in_force != before:
            get_logger().info("config_reloaded", path=str(self._path))
        self._refuse(refused)

    def _refuse(self, reasons: Sequence[str]) -> None:
        self.error = "\n".join(reasons)
        if reasons:
            get_logger().error("config_refused", path=str(self._path), error=self.error)


@contextmanager
def reread_on_hangup(file: FollowedFile[Any]) -> Iterator[None]:
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
