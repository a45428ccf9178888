"""A request as the logs and the metrics see it, be it a call of its own or one of many on a stream.

with observer.observing(method, request) as outcome:      its id and trace bound, itself counted and timed
    try:
        …
    except Exception as error:
        told = outcome.failed(error)                      translated, noted, logged
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc import StatusCode

from weir_chassis.clock import Clock
from weir_chassis.errors import Internal, WeirError, reason_name
from weir_chassis.fault_table import Fault
from weir_chassis.metrics import Metrics
from weir_chassis.status import RemoteError, from_rpc_error, wrong_fields
from weir_chassis.telemetry import Request, bound_request, get_logger


class Outcome:
    """How a request of this method ended, for the metrics. OK until something else is said."""

    __slots__ = ("code", "method", "reason")

    def __init__(self, method: str) -> None:
        self.method, self.code, self.reason = method, StatusCode.OK, ""

    def given_up(self, *, by_deadline: bool = False) -> None:
        """Whoever asked does not wait any more."""
        self.code = StatusCode.DEADLINE_EXCEEDED if by_deadline else StatusCode.CANCELLED
        self.reason = self.code.name

    def failed(self, error: BaseException) -> WeirError:
        """Returns what its caller is told."""
        translated = translate(error)
        self.code, self.reason = translated.row.code, reason_name(translated.reason)
        _log(self.method, translated, error)
        return translated


class Observer:
    """One service's."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics, self._clock = metrics, clock
        # Bounded by the methods that are registered.
        self._meters: dict[str, _Meters] = {}

    @contextmanager
    def observing(self, method: str, request: Request) -> Iterator[Outcome]:
        start, outcome = self._clock.monotonic(), Outcome(method)
        meters = self._meters.get(method)
        if meters is None:
            meters = self._meters[method] = _Meters(self._metrics, method)
        meters.in_flight.inc()
        try:
            with bound_request(request):
                yield outcome
        finally:
            meters.in_flight.dec()
            if outcome.code is StatusCode.OK:
                meters.ok.inc()
            else:
                self._metrics.calls.labels(method, outcome.code.name, outcome.reason).inc()
            meters.seconds.observe(self._clock.monotonic() - start)


class _Meters:
    """One method's, found once: to look them up by their labels takes longer than to count."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self.in_flight = metrics.calls_in_flight.labels(method)
        self.ok = metrics.calls.labels(method, StatusCode.OK.name, "")
        self.seconds = metrics.call_seconds.labels(method)


def translate(error: BaseException) -> WeirError:
    """What a caller is told about this exception. Only a WeirError's own words leave the process."""
    if isinstance(error, WeirError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, BaseExceptionGroup):
        # A task group of one request: the others were cancelled because of the first.
        return translate(error.exceptions[0])
    return Internal("internal error; the service's log has it under this request's id")


def _log(method: str, translated: WeirError, error: BaseException) -> None:
    """Says what became of it. The words of an error that is the client's fault stay out: they may quote what the
    client sent (a chat template raises with the prompt in its message), and the client is told them anyway."""
    logger, reason = get_logger(), reason_name(translated.reason)
    if isinstance(translated, Internal) and not isinstance(translated, RemoteError):
        logger.error("call_failed", method=method, reason=reason, exc_info=error)
    elif translated.row.fault is Fault.SERVER:
        logger.warning("call_failed", method=method, reason=reason, message=translated.message)
    elif translated.row.fault is Fault.CLIENT:
        logger.info("call_refused", method=method, reason=reason, fields=wrong_fields(translated))
    else:
        logger.info("call_refused", method=method, reason=reason, message=translated.message)
