from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.stream_pace import LONGEST_SECONDS, StreamPace


def test_the_first_message_is_due_at_once() -> None:
    assert StreamPace(400).due_at(1000) < 0


@given(live=st.integers(0, 10_000), rate=st.floats(1, 1e6), now=st.floats(0, 1e6))
def test_a_stream_speaks_as_often_as_its_requests_deltas_allow_and_never_more_seldom_than_it_must(
    live: int, rate: float, now: float
) -> None:
    pace = StreamPace(rate)
    pace.spoke(now)
    wait = pace.due_at(live) - now
    assert -1e-9 <= wait <= LONGEST_SECONDS + 1e-9
    assert wait * rate <= live + 1e-3
    assert pace.due_at(0) == now
    assert pace.due_at(live) <= pace.due_at(live + 1)
