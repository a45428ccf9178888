"""The operations of this router: begun, watched, cancelled, and remembered for a while.

    start ─▶ a task for the operation ─▶ one for each target, a few at once ─▶ done, with what failed where

What an executor or a host has begun is its own to finish or to undo; an operation that ends with its router was told to
nobody else, and ends its calls, which undoes what was not done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from time import time
from typing import Final

import grpc

from weir_chassis.background import Background
from weir_chassis.channel import Connect
from weir_chassis.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound, Overloaded, WeirError
from weir_chassis.status import from_rpc_error
from weir_chassis.telemetry import get_logger
from weir_router.operations.actions import Action, progress
from weir_router.operations.operation import Operation, Progress

# Under way at once, each with a call to every target: what operators do, and not what requests do.
_MAX_RUNNING: Final = 8
# Of those that are over, for whoever asks later. About a kilobyte each.
_MAX_REMEMBERED: Final = 64
# Targets of one operation at once, so that a fleet does not read its disks and leave its batches all in one moment.
_AT_ONCE: Final = 4
_MAX_TARGETS: Final = 1024


class Operations:
    """Used from one event loop."""

    def __init__(
        self, background: Background, connect: Connect, new_id: Callable[[], str], *, max_seconds: float
    ) -> None:
        """`max_seconds`: what an operation may take on one target."""
        self._background, self._connect, self._new_id = background, connect, new_id
        self._max_seconds = max_seconds
        self._by_id: dict[str, Operation] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Operation]:
        return iter(list(self._by_id.values()))

    def start(self, action: Action) -> Operation:
        """Raises InvalidArgument, AlreadyExists, Overloaded."""
        if len(action.targets) > _MAX_TARGETS:
            raise InvalidArgument("executors", f"{len(action.targets)}, the limit is {_MAX_TARGETS}")
        running = [operation for operation in self._by_id.values() if not operation.done]
        for other in running:
            if other.subject == action.subject:
                raise AlreadyExists(other.operation_id, f"{other.action!r} is under way as {other.operation_id}")
        if len(running) >= _MAX_RUNNING:
            raise Overloaded(f"{len(running)} operations are under way, the limit is {_MAX_RUNNING}")
        targets = dict.fromkeys(action.targets, Progress())
        operation = Operation(self._new_id(), action.words, action.subject, time(), targets)
        self._remember(operation)
        get_logger().info("operation_started", operation=operation.operation_id, action=action.words)
        self._background.start(self._run(operation, action), name=f"operation-{operation.operation_id}")
        return operation

    def find(self, operation_id: str) -> Operation:
        """Raises NotFound."""
        if operation_id not in self._by_id:
            raise NotFound(operation_id, f"no operation {operation_id!r} is known to this router")
        return self._by_id[operation_id]

    async def watch(self, operation_id: str) -> AsyncGenerator[Operation]:
        """As it is now, and after each change until it is done. Raises NotFound."""
        operation, seen = self.find(operation_id), -1
        while True:
            if operation.version != seen:
                seen = operation.version
                yield operation  # while which it may change again
            elif operation.done:
                return
            else:
                await self._changed.wait()

    def cancel(self, operation_id: str) -> None:
        """Raises NotFound."""
        self.find(operation_id).cancelled = True

    async def _run(self, operation: Operation, action: Action) -> None:
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for target in operation.targets:
                tasks.create_task(self._run_one(operation, action, target, at_once), name=f"operation-at-{target}")
        failed = [target for target, found in operation.targets.items() if found.error is not None]
        get_logger().info("operation_done", operation=operation.operation_id, action=action.words, failed=failed)

    async def _run_one(self, operation: Operation, action: Action, target: str, at_once: asyncio.Semaphore) -> None:
        """Never raises what the target did: the others go on."""
        async with at_once:
            if operation.cancelled:
                self._note(operation, target, Progress(done=True, error=Cancelled("the operation was cancelled")))
                return
            newest = Progress()
            try:
                async with self._connect(target) as channel:
                    async for message in action.run(channel, self._max_seconds):
                        newest = progress(message)
                        self._note(operation, target, newest)
            except (grpc.RpcError, WeirError) as error:
                failure = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
                self._note(operation, target, Progress(newest.done_bytes, newest.total_bytes, done=True, error=failure))
            else:
                self._note(operation, target, Progress(newest.done_bytes, newest.total_bytes, done=True))

    def _note(self, operation: Operation, target: str, found: Progress) -> None:
        operation.note(target, found)
        self._changed.set()
        self._changed = asyncio.Event()

    def _remember(self, operation: Operation) -> None:
        """The oldest that is over goes, when there are too many."""
        self._by_id[operation.operation_id] = operation
        over = [each.operation_id for each in self._by_id.values() if each.done]
        for operation_id in over[: len(self._by_id) - _MAX_REMEMBERED]:
            del self._by_id[operation_id]
