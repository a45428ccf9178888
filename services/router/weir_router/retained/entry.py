"""An event of a stream as an entry of a log: bytes, because that is what is kept and what routers share."""

from __future__ import annotations

from typing import Any

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta, OutputFinished, Receipt
from weir.router.v1.retained_pb2 import RetainedEnd, RetainedEntry
from weir_chassis.errors import WeirError
from weir_chassis.status import from_failure, to_failure
from weir_router.delivery import Event

_FIELDS: dict[type, str] = {
    Accepted: "accepted",
    Delta: "delta",
    Continued: "continued",
    OutputFinished: "finished",
    Usage: "usage",
    Receipt: "receipt",
}


def entry_of(event: Event) -> RetainedEntry:
    fields: dict[str, Any] = {_FIELDS[type(event)]: event}
    return RetainedEntry(**fields)


def end_of(error: WeirError | None) -> RetainedEntry:
    """The last entry; without an error the stream ended well."""
    return RetainedEntry(end=RetainedEnd(failure=to_failure(error) if error else None))


def event_of(entry: RetainedEntry) -> Event | None:
    """What a reader is given; None for the end, and for what a newer router has written that this one does not know."""
    kind = entry.WhichOneof("entry")
    if kind is None or kind == "end":
        return None
    event: Event = getattr(entry, kind)
    return event


def error_of(end: RetainedEnd) -> WeirError | None:
    return from_failure(end.failure) if end.HasField("failure") else None
