from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import structlog

from weir_chassis.telemetry import (
    REQUEST_ID_KEY,
    TRACEPARENT_KEY,
    Request,
    bound_request,
    call_metadata,
    configure_logging,
    current_request,
    get_logger,
    request_from,
)
from weir_chassis.trace import TraceContext

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("toy", "info", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_service_level_and_time(log: io.StringIO) -> None:
    get_logger().info("serving", address="127.0.0.1:1")
    (line,) = lines(log)
    assert (line["event"], line["service"], line["level"], line["address"]) == ("serving", "toy", "info", "127.0.0.1:1")
    assert line["timestamp"].endswith("Z")


def test_lines_below_the_level_are_dropped(log: io.StringIO) -> None:
    get_logger().debug("detail")
    assert lines(log) == []


def test_the_standard_librarys_lines_look_the_same(log: io.StringIO) -> None:
    logging.getLogger("some.library").warning("it said %s", "so")
    (line,) = lines(log)
    assert (line["event"], line["service"], line["level"]) == ("it said so", "toy", "warning")


def test_a_traceback_stays_on_its_line(log: io.StringIO) -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        get_logger().exception("failed")
    (line,) = lines(log)
    assert line["exception"][0]["exc_value"] == "bad"


def test_a_traceback_does_not_hold_the_local_variables(log: io.StringIO) -> None:
    prompt = "somebody's secret " + "prompt"
    try:
        raise ValueError(len(prompt))
    except ValueError:
        get_logger().exception("failed")
    assert "secret prompt" not in log.getvalue(), "prompts are never logged"


def test_lines_carry_the_request(log: io.StringIO) -> None:
    with bound_request(Request("req-1", TraceContext("a" * 32, "b" * 16))):
        get_logger().info("inside")
    get_logger().info("outside")
    inside, outside = lines(log)
    assert (inside["request_id"], inside["trace_id"], inside["span_id"]) == ("req-1", "a" * 32, "b" * 16)
    assert "request_id" not in outside


async def test_each_task_has_its_own_request() -> None:
    async def work(name: str) -> str | None:
        with bound_request(Request(name, TraceContext("a" * 32, "b" * 16))):
            await asyncio.sleep(0)
            current = current_request()
            return current.request_id if current else None

    assert list(await asyncio.gather(work("one"), work("two"))) == ["one", "two"]
    assert current_request() is None


def test_the_callers_request_is_continued() -> None:
    request = request_from([(REQUEST_ID_KEY, "req-1"), (TRACEPARENT_KEY, HEADER), ("other-bin", b"\xff")], Random(0))
    assert request.request_id == "req-1"
    assert request.trace.trace_id == HEADER.split("-")[1]
    assert request.trace.span_id != HEADER.split("-")[2]


@pytest.mark.parametrize("value", ["", "x" * 129, "new\nline", b"bytes"])
def test_an_unusable_id_is_replaced(value: str | bytes) -> None:
    request = request_from([(REQUEST_ID_KEY, value)], Random(0))
    assert request.request_id == request.trace.trace_id


def test_no_metadata_starts_a_trace() -> None:
    assert len(request_from(None, Random(1)).trace.trace_id) == 32


def test_call_metadata_carries_it_on() -> None:
    assert call_metadata() == ()
    with bound_request(Request("req-1", TraceContext("a" * 32, "b" * 16, "01"))):
        first, second = dict(call_metadata()), dict(call_metadata())
    assert first[REQUEST_ID_KEY] == "req-1"
    assert first[TRACEPARENT_KEY].startswith("00-" + "a" * 32)
    assert first[TRACEPARENT_KEY] != second[TRACEPARENT_KEY], "each call is a span"
