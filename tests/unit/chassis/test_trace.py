from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.trace import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_header_is_read_and_passed_on() -> None:
    parent = TraceContext.parse(f"00-{TRACE}-{SPAN}-01")
    assert parent == TraceContext(TRACE, SPAN, "01")
    child = parent.child(Random(0))
    assert (child.trace_id, child.flags) == (TRACE, "01")
    assert child.span_id != SPAN
    assert TraceContext.parse(child.header) == child


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_a_bad_header_is_nobodys(header: str) -> None:
    assert TraceContext.parse(header) is None


def test_a_future_version_may_say_more() -> None:
    assert TraceContext.parse(f"01-{TRACE}-{SPAN}-01-more") == TraceContext(TRACE, SPAN, "01")


@given(st.integers())
def test_a_new_trace_is_valid(seed: int) -> None:
    trace = TraceContext.start(Random(seed))
    assert TraceContext.parse(trace.header) == trace


@given(st.text())
def test_parsing_never_raises(header: str) -> None:
    TraceContext.parse(header)
