"""What a server answers to `GET`s, each value received into memory of its own.

Replies are RESP2: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from redis.exceptions import InvalidResponse, RedisError, ResponseError

# What a key held: its bytes, nothing, or why the server does not say.
Reply: TypeAlias = memoryview | ResponseError | None

# Where replies' first lines arrive, and with each as much of its value, which is then copied: small beside a large one.
_SCRATCH_BYTES: Final = 16 * 1024
# `$67108864`, or an error's text. No server says more in a line.
_MAX_LINE_BYTES: Final = 4096
_END: Final = b"\r\n"
_TOO_MANY: Final = "more answers than questions"


class Replies:
    """Of so many `GET`s; `whole` once the last is there, ConnectionLost or InvalidResponse when it cannot come."""

    def __init__(self, count: int, max_value_bytes: int) -> None:
        assert count > 0, count
        self.whole: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._count = count
        self._max_value_bytes = max_value_bytes
        self._replies: list[Reply] = []
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._line = b""  # the beginning of one
        self._value: memoryview | None = None  # that is being received, and its line's end
        self._filled = 0
        self._skipped = 0  # bytes of a value that is too long, still to come
        self._stray = False  # whether something came after the last

    def require_end(self) -> None:
        """Raises InvalidResponse when more was said than was asked for."""
        if self._stray:
            raise InvalidResponse(_TOO_MANY)

    @property
    def room(self) -> memoryview:
        """Where the next bytes are to arrive; never empty."""
        return self._scratch if self._value is None else self._value[self._filled :]

    def arrived(self, nbytes: int) -> None:
        """So many bytes, at the beginning of the room."""
        if self.whole.done():
            self._stray = True
        elif self._value is None:
            self._take(self._scratch[:nbytes])
        else:
            self._filled += nbytes
            self._end_value()
        if len(self._replies) == self._count and not self._skipped and not self.whole.done():
            self.whole.set_result(self._replies)

    def fail(self, error: RedisError) -> None:
        """No more will come."""
        if not self.whole.done():
            self.whole.set_exception(error)

    def _take(self, received: memoryview) -> None:
        """Lines, values, and beginnings of either."""
        while received and not self.whole.done():
            if self._skipped:
                taken = min(self._skipped, len(received))
                self._skipped -= taken
            elif self._value is None:
                taken = self._take_line(received)
            else:
                taken = min(len(self._value) - self._filled, len(received))
                self._value[self._filled : self._filled + taken] = received[:taken]
                self._filled += taken
                self._end_value()
            received = received[taken:]

    def _take_line(self, received: memoryview) -> int:
        """How much of it is the line's, or the beginning of one's."""
        begun = len(self._line)
        self._line += bytes(received[:_MAX_LINE_BYTES])
        end = self._line.find(_END)
        if end < 0:
            if len(self._line) > _MAX_LINE_BYTES:
                self.fail(InvalidResponse("a line without an end"))
            return len(self._line) - begun
        line, self._line = self._line[:end], b""
        self._begin(line)
        return end + len(_END) - begun

    def _begin(self, line: bytes) -> None:
        kind, said = line[:1], line[1:]
        if len(self._replies) == self._count:
            self.fail(InvalidResponse(_TOO_MANY))
        elif kind == b"-":
            self._replies.append(ResponseError(said.decode(errors="replace")))
        elif line == b"$-1":
            self._replies.append(None)
        elif kind != b"$" or not said.isdigit():
            self.fail(InvalidResponse(f"no answer to a GET: {line[:64]!r}"))
        elif int(said) > self._max_value_bytes:
            self._skipped = int(said) + len(_END)
            self._replies.append(memoryview(b""))
        else:
            self._value, self._filled = memoryview(bytearray(int(said) + len(_END))), 0

    def _end_value(self) -> None:
        if self._value is None or self._filled < len(self._value):
            return
        value, self._value = self._value, None
        if bytes(value[-len(_END) :]) == _END:
            self._replies.append(value[: -len(_END)])
        else:
            self.fail(InvalidResponse("a value is longer than it says"))
