from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.deadline import hop_timeout, next_hop, time_left
from weir_chassis.errors import DeadlineExceeded


@dataclass
class Context:
    left: float | None

    def time_remaining(self) -> float | None:
        return self.left


def test_time_left_is_none_or_not_negative() -> None:
    assert time_left(Context(None)) is None
    assert time_left(Context(-0.5)) == 0.0
    assert time_left(Context(2.0)) == 2.0


def test_each_hop_passes_on_what_is_left() -> None:
    assert next_hop(Context(10.0)) == 10.0
    assert next_hop(Context(10.0), reserve=0.5) == 9.5
    assert next_hop(Context(10.0), limit=3.0) == 3.0
    assert next_hop(Context(None)) is None
    assert next_hop(Context(None), limit=3.0) == 3.0


def test_a_hop_without_time_is_not_made() -> None:
    with pytest.raises(DeadlineExceeded):
        next_hop(Context(0.0))
    with pytest.raises(DeadlineExceeded):
        next_hop(Context(0.5), reserve=0.5)


@given(st.floats(0.001, 1e6), st.floats(0, 1e6), st.none() | st.floats(0.001, 1e6))
def test_a_hop_never_outlives_its_caller(left: float, reserve: float, limit: float | None) -> None:
    try:
        timeout = hop_timeout(left, reserve=reserve, limit=limit)
    except DeadlineExceeded:
        assert left <= reserve
    else:
        assert timeout is not None
        assert 0.0 < timeout <= left
