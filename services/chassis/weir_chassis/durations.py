"""Seconds as messages carry them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def duration(seconds: float) -> Duration:
    """To the nanosecond. Not `FromTimedelta`, which takes ten times as long."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def seconds_of(duration: Duration) -> float:
    """Of any, also of one that is negative or out of its bounds. Not `ToTimedelta`, which knows no nanoseconds."""
    return duration.seconds + duration.nanos / 1e9
