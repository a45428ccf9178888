"""Loading and unloading adapters while requests run, each told as it goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from weir_chassis.errors import Cancelled, InvalidArgument, NotFound, Unsupported, WeirError
from weir_chassis.telemetry import get_logger
from weir_executor.adapters.base import Base, check_base
from weir_executor.adapters.config import CONFIG_FILE
from weir_executor.adapters.files import WEIGHTS_FILE, read_config
from weir_executor.adapters.table import AdapterTable, HeldAdapter
from weir_executor.engine import AdapterInfo, Engine
from weir_executor.folders import below

_MAX_REVISION_BYTES = 128


@dataclass(frozen=True, slots=True)
class Read:
    """How much of an adapter has been read, in bytes."""

    done: int
    total: int


class AdapterOperations:
    """Used from one event loop."""

    def __init__(self, engine: Engine, table: AdapterTable, base: Base, folder: Path | None) -> None:
        """`folder`: below it are all adapters that may be loaded."""
        self._engine, self._table, self._base, self._folder = engine, table, base, folder
        self._tasks: set[asyncio.Task[None]] = set()  # each has a slot

    async def load(
        self, name: str, directory: str, base_revision: str | None = None
    ) -> AsyncGenerator[Read | HeldAdapter]:
        """How far it is, and last the adapter: loaded when it is yielded, and kept when the iteration goes on from it.

        Whatever ends the iteration before that undoes the load. Raises InvalidArgument, AlreadyExists, Overloaded,
        RevisionMismatch, Unsupported.
        """
        if base_revision is not None and len(base_revision.encode()) > _MAX_REVISION_BYTES:
            raise InvalidArgument("base_revision", f"longer than {_MAX_REVISION_BYTES} bytes")
        held, progress = self._table.reserve(name), _Progress()
        task = asyncio.create_task(self._load(held, directory, base_revision, progress), name="load-adapter")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(progress.end)
        kept = False
        try:
            async for read in progress.follow(task):
                yield read
            yield held
            kept = True
        finally:
            if not kept:
                progress.stop()
                if held.usable:
                    held.retire()

    async def unload(self, name: str) -> AsyncGenerator[int]:
        """How many requests still use it, and 0 when its memory is free. Leaves anyway when the iteration ends.

        Raises NotFound.
        """
        held = self._table.find(name)
        if held.name != name:
            raise NotFound(name, f"adapter {name!r} is not loaded here")
        held.retire()
        while held.live:
            yield held.live
            held.changed.clear()
            await held.changed.wait()
        get_logger().info("adapter_unloaded", adapter=name)
        yield 0

    async def _load(self, held: HeldAdapter, directory: str, base_revision: str | None, progress: _Progress) -> None:
        """In a thread that ends with it: a thread that has computed leaves helpers behind that slow the step thread."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="load-adapter")
        try:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(executor, self._read, held.name, directory, base_revision, progress)
            executor.shutdown(wait=False)
            info = await reading
        except BaseException:
            self._table.forget(held)
            raise
        if progress.stopped:
            self._engine.unload_adapter(held.name)
            self._table.forget(held)
            return
        held.info = info
        get_logger().info("adapter_loaded", adapter=held.name, rank=info.rank, fingerprint=info.fingerprint)

    def _read(self, name: str, directory: str, base_revision: str | None, progress: _Progress) -> AdapterInfo:
        if self._folder is None:
            raise Unsupported("this executor has no adapter folder: WEIR_EXECUTOR_ADAPTER_DIR is not set")
        path = below(self._folder, directory, (CONFIG_FILE, WEIGHTS_FILE), "adapter folder")
        config = read_config(path, self._engine.info.max_adapter_rank)
        check_base(config, self._base, base_revision)
        return self._engine.load_adapter(name, path, config, progress.note)


class _Progress:
    """From the thread that reads to the call that tells. What is not told in time is overtaken by what comes next."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        self._stopped = threading.Event()
        self._newest: Read | None = None

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def note(self, done: int, total: int) -> None:
        """On the reading thread. Raises Cancelled when nobody waits for it any more."""
        if self.stopped:
            raise Cancelled("the load was given up")
        self._newest = Read(done, total)
        self._loop.call_soon_threadsafe(self._event.set)

    def stop(self) -> None:
        self._stopped.set()

    def end(self, task: asyncio.Task[None]) -> None:
        """The task is done. One that failed after its call was given up has nobody to tell."""
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, WeirError):
            get_logger().error("load_adapter_failed", exc_info=error)
        self._event.set()

    async def follow(self, task: asyncio.Task[None]) -> AsyncIterator[Read]:
        """Until the task is done. Raises what it did."""
        while not task.done():
            await self._event.wait()
            self._event.clear()
            newest, self._newest = self._newest, None
            if newest is not None:
                yield newest
        await task
