"""Logs, and the request that each line belongs to.

One JSON object per line on stderr. A prompt, a completion or a key is never logged; ids, counts and times are.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import TextIO

import structlog
from structlog.types import FilteringBoundLogger

from weir_chassis.limits import MAX_REQUEST_ID_BYTES
from weir_chassis.trace import TraceContext

REQUEST_ID_KEY = "weir-request-id"
TRACEPARENT_KEY = "traceparent"

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Request:
    """Who a log line, a lease or an outgoing call belongs to."""

    request_id: str
    trace: TraceContext


# Without local variables: a prompt is one.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))

_current: ContextVar[Request | None] = ContextVar("weir_request", default=None)


def configure_logging(service: str, level: str, stream: TextIO | None = None) -> None:
    """Sends every log line of this process, the standard library's included, to stderr as JSON."""
    shared: list[structlog.types.Processor] = [
        name_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_service(service),
    ]
    render: list[structlog.types.Processor] = [
        _TRACEBACKS,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def get_logger() -> FilteringBoundLogger:
    """The structured logger; call it when logging, so that it sees the latest configuration."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


@contextmanager
def bound_request(request: Request) -> Iterator[Request]:
    """Binds the request to this task: to its log lines, and to the calls that it makes."""
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)


def current_request() -> Request | None:
    """The request that this task serves, if it serves one."""
    return _current.get()


def request_from(metadata: Metadata | None, random: Random) -> Request:
    """The caller's request id and trace, or new ones where it sent none that are usable."""
    values = {key: value for key, value in metadata or () if key in (REQUEST_ID_KEY, TRACEPARENT_KEY)}
    return carried_request(values.get(REQUEST_ID_KEY), str(values.get(TRACEPARENT_KEY, "")), random)


def carried_request(request_id: str | bytes | None, traceparent: str, random: Random) -> Request:
    """As `request_from`, of one request on a stream."""
    parent = TraceContext.parse(traceparent)
    trace = parent.child(random) if parent else TraceContext.start(random)
    return Request(_usable_id(request_id) or trace.trace_id, trace)


def call_metadata(request: Request | None = None, random: Random | None = None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries the request on to the next hop: `stub.Method(…, metadata=call_metadata())`.

    Not a client interceptor: grpc.aio's cost time for every message of a stream.
    """
    request = request or current_request()
    if request is None:
        return ()
    return ((REQUEST_ID_KEY, request.request_id), (TRACEPARENT_KEY, carried_trace(request, random)))


def carried_trace(request: Request, random: Random | None = None) -> str:
    """The `traceparent` that carries the request on, where it is one of many on a stream and has no metadata."""
    return request.trace.child(random or _SPANS).header


# Span ids only have to differ between processes, so they alone are drawn from the system.
_SPANS = Random(SystemRandom().getrandbits(64))


def _usable_id(value: str | bytes | None) -> str | None:
    if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_REQUEST_ID_BYTES:
        return None
    return value if value.isprintable() else None


def name_request(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """A processor: says in each line to which request it belongs. Done per line, for there are more requests."""
    if (request := _current.get()) is not None:
        event.setdefault("request_id", request.request_id)
        event.setdefault("trace_id", request.trace.trace_id)
        event.setdefault("span_id", request.trace.span_id)
    return event


def _name_service(service: str) -> structlog.types.Processor:
    def name_service(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["service"] = service
        return event

    return name_service
