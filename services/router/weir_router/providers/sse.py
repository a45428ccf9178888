"""Server-sent events out of bytes, however they are cut. Pure.

As far as streams of JSON need it: the `data` of each event. Source: the HTML standard, §9.2.6 "Interpreting an event
stream".
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Final

from weir_chassis.errors import WorkerLost

# An event carries a few tokens with their log-probabilities; a server that ends no event must not fill our memory.
_MAX_EVENT_CHARS: Final = 1 << 20


class EventStream:
    """`feed` gives the data of each event that these bytes complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._data: list[str] = []
        self._chars = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Raises WorkerLost when an event is longer than any should be."""
        text = self._rest + self._decoder.decode(chunk)
        # A carriage return may be the first half of a line's end.
        kept = len(text) - 1 if text.endswith("\r") else len(text)
        lines = text[:kept].replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + text[kept:]
        for line in lines:
            yield from self._line(line)
        if self._chars + len(self._rest) > _MAX_EVENT_CHARS:
            raise WorkerLost(f"it sent an event of more than {_MAX_EVENT_CHARS} characters")

    def _line(self, line: str) -> Iterator[str]:
        if not line:
            if self._data:
                yield "\n".join(self._data)
            self._data, self._chars = [], 0
        elif line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
            self._chars += len(line)
