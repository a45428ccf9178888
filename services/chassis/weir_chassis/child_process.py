"""A service of the suite as a process of its own, that does not outlive this one: start, wait until it serves, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

from weir_chassis.channel import open_channel
from weir_chassis.probe import is_serving

_POLL_SECONDS, _PROBE_SECONDS = 0.05, 1.0
_LOG_TAIL_LINES = 5


class StartError(Exception):
    """A service did not start, or dies again and again. The message ends with the last lines of its log."""


class EndedEarlyError(StartError):
    """The process ended before it was ready."""


class ChildProcess:
    """Runs `python -m <module>`; both its outputs go to the log."""

    def __init__(self, service: str, address: str, log: Path, process: asyncio.subprocess.Process):
        self.service, self.address, self.log, self._process = service, address, log, process

    @classmethod
    async def start(
        cls, service: str, address: str, environment: Mapping[str, str], log: Path, *, module: str | None = None
    ) -> Self:
        """`environment`: all that it is told of the suite, besides what is not the suite's in our own.

        `service` names its variables, and its module where none is given.
        """
        whole = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
        whole |= {**environment, f"WEIR_{service}_EXIT_WITH_PARENT".upper(): str(os.getpid())}
        with log.open("ab") as file:  # what a process that died had to say stays above what its successor says
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module or f"weir_{service}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=whole,
                start_new_session=True,  # Ctrl-C reaches us alone; we tell the children in our own order
            )
        return cls(service, address, log, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    @property
    def ended(self) -> bool:
        return self.returncode is not None

    async def until_serving(self, seconds: float) -> None:
        """Raises EndedEarlyError when the process ends, StartError when the time is over."""
        began = monotonic()
        async with open_channel(self.address) as channel:
            while not await is_serving(channel, seconds=_PROBE_SECONDS):
                if self.ended:
                    raise EndedEarlyError(f"{self.service} ended with code {self.returncode}:\n{self.tail()}")
                if monotonic() - began > seconds:
                    raise StartError(f"{self.service} was not ready after {seconds:.0f} s:\n{self.tail()}")
                await asyncio.sleep(_POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        if not self.ended:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code."""
        return await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """Lets it drain for so long, then kills it; at once when this is cancelled."""
        self.signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), seconds)
        finally:
            self.signal(signal.SIGKILL)
            await self.wait()

    def tail(self) -> str:
        """The log's last lines."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
