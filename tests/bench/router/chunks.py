"""A chunked HTTP/1.1 answer as it comes in (RFC 9112, section 7.1). Pure."""

from __future__ import annotations


class Chunks:
    """The payload without its frame. A chunk may end anywhere, and so may what is received."""

    def __init__(self) -> None:
        self._received = b""
        self._left: int | None = None  # of the chunk that is coming in, with its end; None: its size is not known yet
        self._in_body, self._is_last = False, False
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The payload that these bytes bring."""
        self._received += data
        payload: list[bytes] = []
        while not self.done and self._take(payload):
            pass
        return b"".join(payload)

    def _take(self, payload: list[bytes]) -> bool:
        """Whether there may be more to take."""
        if not self._in_body:
            head, mark, rest = self._received.partition(b"\r\n\r\n")
            self._in_body = bool(mark)
            self._received = rest if mark else head
            return self._in_body
        if self._left is None:
            size, mark, rest = self._received.partition(b"\r\n")
            if not mark:
                return False
            self._left, self._received = int(size.split(b";")[0], 16) + 2, rest
            self._is_last = self._left == 2
            return True
        part, self._received = self._received[: self._left], self._received[self._left :]
        payload.append(part[: max(0, self._left - 2)])
        self._left = self._left - len(part) or None
        self.done = self._is_last and self._left is None
        return self._left is None
