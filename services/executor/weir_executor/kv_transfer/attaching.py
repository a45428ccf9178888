"""Which arena blocks move through now: the store's, once it is mapped, until the store has another one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from weir.kvstore.v1 import kvstore_pb2 as kv
from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_executor.kv_transfer.attached_arena import AttachedArena
from weir_executor.kv_transfer.copier import Copier

if TYPE_CHECKING:
    # The generated module has this name only for type checkers.
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub

# A store that shares no arena now may do so when it has been started anew, with other settings or on this host.
_AGAIN_SECONDS: Final = 30.0
# How a store refuses an arena that is not its own: it has another one, or none.
_ANOTHER_ARENA: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


class Attaching:
    """Asks when an arena is wanted, and not too often."""

    def __init__(self, stub: KvStoreServiceAsyncStub, clock: Clock, copier: Copier) -> None:
        self._stub, self._clock, self._copier = stub, clock, copier
        self._arena: AttachedArena | None = None
        self._asks_again_at = clock.monotonic()
        self._asking: asyncio.Task[AttachedArena | None] | None = None
        self._unreachable = False  # when it was asked last: one that comes back may share an arena at once

    async def arena(self, timeout: float) -> AttachedArena | None:
        """None: by value, for now. Those who ask at the same time share one answer. Never raises.

        `timeout` is a part of what the caller has, so that it can still go by value when nobody answers.
        """
        if self._arena is not None or self._clock.monotonic() < self._asks_again_at:
            return self._arena
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(timeout), name="attach-arena")
            self._asking.add_done_callback(self._asked)
        done, _ = await asyncio.wait([self._asking], timeout=timeout)
        return self._arena if done else None

    def lost(self, arena: AttachedArena, error: grpc.RpcError) -> bool:
        """Whether the call may have failed because the store has another arena now. It is asked for at the next use."""
        self.gone(error)
        if error.code() not in _ANOTHER_ARENA:
            return False
        if self._arena is arena:
            self._let_go()
        return True

    def gone(self, error: grpc.RpcError) -> None:
        """The arena of a store that cannot be reached is let go of: the next one may be waiting for its memory."""
        if _is_unreachable(error) and self._arena is not None:
            self._let_go()

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def _let_go(self) -> None:
        self._arena, self._asks_again_at = None, self._clock.monotonic()

    def _asked(self, task: asyncio.Task[AttachedArena | None]) -> None:
        self._asking = None
        self._arena = None if task.cancelled() else task.result()
        self._asks_again_at = self._clock.monotonic() + (0.0 if self._unreachable else _AGAIN_SECONDS)

    async def _ask(self, timeout: float) -> AttachedArena | None:
        try:
            found = await self._stub.AttachArena(kv.AttachArenaRequest(), timeout=timeout)
            where = (found.arena_id, Path(found.path), found.size_bytes)
            arena = await asyncio.to_thread(AttachedArena, *where, self._copier)
        except (grpc.RpcError, OSError, ValueError) as error:  # ValueError: sizes and names that no file can have
            self._unreachable = _is_unreachable(error)
            reason = error.details() if isinstance(error, grpc.RpcError) else str(error)
            get_logger().info("no_kvstore_arena", reason=reason)
            return None
        self._unreachable = False
        get_logger().info("kvstore_arena_attached", arena_id=arena.arena_id, bytes=found.size_bytes)
        return arena


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
