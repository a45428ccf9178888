"""One bidirectional call that lives as long as its worker, with many requests on it.

Messages are written by one task, which asks for the next message each time the write before has been taken: whatever
was added meanwhile can go out as one. A stream whose messages gain by being joined may have it pause before each.
Messages are read by the caller of `run` and handed over without a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import grpc

from weir_chassis.errors import WeirError, WorkerLost
from weir_chassis.status import RemoteError, from_rpc_error

Q = TypeVar("Q")
A = TypeVar("A")


class Duplex(Generic[Q, A]):
    """`next_message` returns what is to be sent now, or None; `on_message` takes what came.

    `pause` says what is waited for before it is asked for, so that more is there; None: nothing is.
    """

    def __init__(
        self,
        next_message: Callable[[], Q | None],
        on_message: Callable[[A], None],
        pause: Callable[[], Awaitable[None] | None] | None = None,
    ):
        self._next_message, self._on_message, self._pause = next_message, on_message, pause
        self._something_to_send = asyncio.Event()

    def wake(self) -> None:
        """There is something to send."""
        self._something_to_send.set()

    async def run(self, call: grpc.aio.StreamStreamCall[Q, A]) -> None:
        """Until the call ends, which it always does by raising a WeirError: a worker has no reason to end it."""
        writer = asyncio.create_task(self._write(call), name="duplex-writer")
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                self._on_message(message)  # type: ignore[arg-type]  # EOF is no message
            raise WorkerLost("the worker ended the stream")
        except grpc.RpcError as error:
            raise _lost_or_told(from_rpc_error(error)) from None
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            # A call that was cancelled here, and not this task, reads as a cancellation too.
            raise WorkerLost("the stream was given up") from None
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait({writer})
            if not writer.cancelled() and (bug := writer.exception()) is not None:
                raise bug

    async def _write(self, call: grpc.aio.StreamStreamCall[Q, A]) -> None:
        try:
            while True:
                await self._something_to_send.wait()
                self._something_to_send.clear()
                while (message := await self._gathered()) is not None:
                    await call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended, and its reader is told why
        finally:
            # A writer that is gone for any reason must not leave a reader that waits for answers.
            call.cancel()

    async def _gathered(self) -> Q | None:
        if self._pause is not None and (pause := self._pause()) is not None:
            await pause
        return self._next_message()


def _lost_or_told(error: WeirError) -> WeirError:
    """What the worker itself says has our details. All else is said by gRPC, of a connection that broke, and be it
    INTERNAL, as a stream is that was reset."""
    return error if isinstance(error, RemoteError) else WorkerLost(error.message)


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
