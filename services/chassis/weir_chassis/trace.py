"""W3C trace context, read and passed on: the same trace id on every hop, a new span id for each.

traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
             │  trace id, 16 bytes               │ span id, 8     └ flags (01: sampled)
             └ version
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TraceContext:
    trace_id: str
    span_id: str
    flags: str = "00"

    @staticmethod
    def start(random: Random) -> TraceContext:
        """A new trace, not sampled: whoever wants spans decides so at the edge and sends the header."""
        return TraceContext(_hex(random, 16), _hex(random, 8))

    @staticmethod
    def parse(header: str) -> TraceContext | None:
        """None for what the specification calls invalid; a bad header must never fail a call."""
        match = _TRACEPARENT.fullmatch(header)
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == "ff" or not int(trace_id, 16) or not int(span_id, 16) or (rest and version == "00"):
            return None
        return TraceContext(trace_id, span_id, flags)

    def child(self, random: Random) -> TraceContext:
        """The next span of the same trace."""
        return TraceContext(self.trace_id, _hex(random, 8), self.flags)

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def _hex(random: Random, size_bytes: int) -> str:
    # The specification forbids all zeros, so one bit is always set.
    return f"{random.getrandbits(size_bytes * 8) | 1:0{size_bytes * 2}x}"
