from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.durations import duration, seconds_of


@given(st.floats(-1e6, 1e6))
def test_what_is_written_is_read_to_the_nanosecond(seconds: float) -> None:
    written = duration(seconds)
    assert seconds_of(written) == pytest.approx(seconds, abs=2e-9)
    assert written.ToTimedelta().total_seconds() == pytest.approx(seconds, abs=2e-6), "as the official reader has it"


def test_what_is_out_of_its_bounds_is_read_all_the_same() -> None:
    assert seconds_of(Duration(seconds=1, nanos=-500_000_000)) == 0.5
    assert seconds_of(Duration(nanos=2_000_000_000)) == 2.0
