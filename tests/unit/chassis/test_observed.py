"""A request is bound, counted and timed, and its failure told, whether it is a call or one of many on a stream."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from structlog.testing import capture_logs

from weir_chassis.errors import Internal, InvalidArgument, Overloaded, WorkerLost
from weir_chassis.metrics import Metrics
from weir_chassis.observed import Observer, translate
from weir_chassis.telemetry import carried_request, carried_trace, current_request
from weir_chassis.testing import VirtualClock

METHOD = "/weir.test.v1.TestService/Do"
REQUEST = carried_request("r-1", "", Random(1))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("test")


def calls(metrics: Metrics, code: str, reason: str = "") -> float | None:
    labels = {"method": METHOD, "code": code, "reason": reason}
    return metrics.registry.get_sample_value("weir_test_calls_total", labels)


async def test_what_ends_well_is_counted_and_timed(metrics: Metrics) -> None:
    clock = VirtualClock()
    observer = Observer(metrics, clock)
    for _ in range(2):
        with observer.observing(METHOD, REQUEST):
            assert current_request() is REQUEST
            assert metrics.registry.get_sample_value("weir_test_calls_in_flight", {"method": METHOD}) == 1
            await clock.advance(3.0)
    assert current_request() is None
    assert calls(metrics, "OK") == 2
    assert metrics.registry.get_sample_value("weir_test_calls_in_flight", {"method": METHOD}) == 0
    assert metrics.registry.get_sample_value("weir_test_call_seconds_sum", {"method": METHOD}) == 6.0


@pytest.mark.parametrize(
    ("error", "code", "reason", "event"),
    [
        (InvalidArgument("text", "empty"), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "call_refused"),
        (Overloaded("full"), "RESOURCE_EXHAUSTED", "OVERLOADED", "call_refused"),
        (WorkerLost("gone"), "UNAVAILABLE", "WORKER_LOST", "call_failed"),
        (ZeroDivisionError("ours"), "INTERNAL", "INTERNAL", "call_failed"),
    ],
)
def test_what_fails_is_told_once_and_a_clients_words_are_not_logged(
    error: Exception, code: str, reason: str, event: str, metrics: Metrics
) -> None:
    observer = Observer(metrics, VirtualClock())
    with capture_logs() as logs, observer.observing(METHOD, REQUEST) as outcome:
        told = outcome.failed(error)
    assert (calls(metrics, code, reason), calls(metrics, "OK")) == (1, 0)
    assert [(line["event"], line["method"], line["reason"]) for line in logs] == [(event, METHOD, reason)]
    assert "empty" not in str(logs)
    assert "ours" not in told.message


@pytest.mark.parametrize(("by_deadline", "code"), [(False, "CANCELLED"), (True, "DEADLINE_EXCEEDED")])
def test_what_nobody_waits_for_is_no_failure(by_deadline: bool, code: str, metrics: Metrics) -> None:
    with capture_logs() as logs, Observer(metrics, VirtualClock()).observing(METHOD, REQUEST) as outcome:
        outcome.given_up(by_deadline=by_deadline)
    assert calls(metrics, code, code) == 1
    assert not logs


def test_the_first_of_a_group_is_what_is_told() -> None:
    assert isinstance(translate(ExceptionGroup("tasks", [Overloaded("full"), ValueError()])), Overloaded)
    assert isinstance(translate(asyncio.InvalidStateError()), Internal)


def test_a_request_on_a_stream_carries_its_name_and_its_trace() -> None:
    arrived = carried_request(REQUEST.request_id, carried_trace(REQUEST), Random(2))
    assert (arrived.request_id, arrived.trace.trace_id) == ("r-1", REQUEST.trace.trace_id)
    assert arrived.trace.span_id != REQUEST.trace.span_id
    for unusable in ("", "x" * 129, "line\nbreak", None):
        nameless = carried_request(unusable, "no trace", Random(3))
        assert nameless.request_id == nameless.trace.trace_id
