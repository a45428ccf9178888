"""A bidirectional call whose other end is the test."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from weir_chassis.errors import WeirError
from weir_chassis.status import to_rpc_status


class ScriptedCall:
    """`written` is what was sent; `answer` and `fail` are what the other end does.."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def answer(self, message: Any) -> None:
        self._answers.put_nowait(message)

    def fail(self, code: grpc.StatusCode, details: str = "") -> None:
        self._answers.put_nowait(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details))

    def fail_with(self, error: WeirError) -> None:
        """As a service of ours ends a call."""
        status = to_rpc_status(error)
        trailing = grpc.aio.Metadata(*status.trailing_metadata)
        self._answers.put_nowait(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details))

    def end(self) -> None:
        self._answers.put_nowait(grpc.aio.EOF)

    async def read(self) -> Any:
        message = await self._answers.get()
        if isinstance(message, grpc.aio.AioRpcError):
            raise message
        if self.cancelled:
            raise asyncio.CancelledError  # as grpc.aio does for a call that was cancelled here
        return message

    async def write(self, message: Any) -> None:
        if self.cancelled:
            raise asyncio.InvalidStateError("the call has ended")
        self.written.append(message)
        await self.writable.wait()

    def cancel(self) -> bool:
        self.cancelled = True
        self.end()
        return True
