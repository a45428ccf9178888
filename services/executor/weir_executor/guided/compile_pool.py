"""Processes that compile guides, from outside: started when first needed, ended when they take too long."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from weir_chassis.errors import Internal
from weir_executor.guided.compile import GuideError
from weir_executor.guided.compile_process import COMPILED, LENGTH_BYTES, CompileLimits, encode_request
from weir_executor.guided.guide import Guide

_PROGRAM = "weir_executor.guided.compile_process"
# Python starts in tenths of a second and a large vocabulary is read in two; a machine that swaps takes longer.
_START_SECONDS = 60.0
# A child that has closed its end is about to exit; to kill it then would hide how it ended.
_EXIT_SECONDS = 5.0


class CompileProcess:
    """One child, which compiles one guide at a time. Used from one event loop."""

    def __init__(self, tokenizer_json: Path, vocab_size: int, limits: CompileLimits) -> None:
        self._argv = ["-m", _PROGRAM, str(tokenizer_json), str(vocab_size), *limits.argv()]
        self._max_seconds = limits.max_seconds
        self._process: Process | None = None

    async def compile(self, guide: Guide) -> bytes:
        """The compiled guide, as xgrammar serialises it. Raises GuideError, and Internal when no child will start."""
        process = self._process or await self._start()
        try:
            async with asyncio.timeout(self._max_seconds):
                await _write(process, encode_request(guide))
                reply = await _read(process)
        except TimeoutError:
            await self.end()
            raise GuideError(f"takes more than {self._max_seconds:g} s to compile") from None
        except (EOFError, ConnectionError):
            returncode = await self.end(_EXIT_SECONDS)
            raise GuideError(f"the compiler broke down over it ({_how_it_ended(returncode)})") from None
        except BaseException:
            await self.end()  # whoever asked has left, and the next must not read this reply
            raise
        if not reply.startswith(COMPILED):
            raise GuideError(reply[1:].decode(errors="replace"))
        return reply[1:]

    async def end(self, grace_seconds: float = 0.0) -> int | None:
        """Gives back what the child holds; the next guide gets a new one. How the child ended, if there was one.

        It may take so long to end by itself.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                return await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        return await asyncio.shield(process.wait())

    async def _start(self) -> Process:
        # Its standard error could only hold what a guide says, which belongs in no log.
        process = await asyncio.create_subprocess_exec(
            sys.executable, *self._argv, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        self._process = process
        try:
            async with asyncio.timeout(_START_SECONDS):
                await _read(process)
        except (TimeoutError, EOFError) as error:
            returncode = await self.end(_EXIT_SECONDS if isinstance(error, EOFError) else 0.0)
            raise Internal(f"the process that compiles guides did not start ({_how_it_ended(returncode)})") from error
        except BaseException:
            await self.end()
            raise
        return process


class CompilePool:
    """Several of them: one guide that takes long does not hold up the next."""

    def __init__(self, processes: Sequence[CompileProcess]) -> None:
        self._all = processes
        self._free = list(processes)
        self._slots = asyncio.Semaphore(len(processes))

    async def compile(self, guide: Guide) -> bytes:
        """See `CompileProcess.compile`. Waits for a child that is free."""
        async with self._slots:
            process = self._free.pop()
            try:
                return await process.compile(guide)
            finally:
                self._free.append(process)

    async def close(self) -> None:
        for process in self._all:
            await process.end()


async def _write(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    await process.stdin.drain()


async def _read(process: Process) -> bytes:
    assert process.stdout is not None
    length = await process.stdout.readexactly(LENGTH_BYTES)
    return await process.stdout.readexactly(int.from_bytes(length, "big"))


def _how_it_ended(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit code {returncode}"
