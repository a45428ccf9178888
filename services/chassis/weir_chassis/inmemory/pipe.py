"""One direction of a call: a bounded queue with one writer and one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import grpc

# As on the wire, a writer runs ahead of its reader by a window and then waits. Large enough that the two tasks do not
# switch at each message, small enough that a slow reader is felt at once.
ROOM_MESSAGES: Final = 16


class Pipe:
    def __init__(self, room_messages: int = ROOM_MESSAGES) -> None:
        assert room_messages > 0, room_messages
        self._room = room_messages
        self._messages: deque[Any] = deque()
        self._closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def closed(self) -> bool:
        return self._closed

    async def put(self, message: Any) -> bool:
        """Waits for room. False when the pipe was closed: the message will not be read."""
        while len(self._messages) >= self._room and not self._closed:
            assert self._writer is None, "two writes at once on one call"
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._closed:
            return False
        self._messages.append(message)
        _wake(self._reader)
        return True

    async def get(self) -> Any:
        """The next message, or `grpc.aio.EOF` when the pipe is closed and empty."""
        while not self._messages:
            if self._closed:
                return grpc.aio.EOF
            assert self._reader is None, "two reads at once on one call"
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        _wake(self._writer)
        return self._messages.popleft()

    def put_last(self, message: Any) -> None:
        """The only message of a unary request, and the end."""
        assert not self._messages
        assert not self._closed
        self._messages.append(message)
        self.close()

    def close(self) -> None:
        """Nothing more comes; what is inside can still be read."""
        self._closed = True
        _wake(self._reader)
        _wake(self._writer)

    def discard(self) -> None:
        """Closes, and drops what was not read."""
        self._messages.clear()
        self.close()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
