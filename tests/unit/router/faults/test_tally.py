"""Two counts over a window, against counting everything afresh."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.faults.tally import Tally

WINDOW = 10.0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(0, 3)), max_size=200))
def test_it_counts_the_window_and_at_most_two_slices_more(steps: list[tuple[float, int, int]]) -> None:
    tally, now, events = Tally(WINDOW), 0.0, list[tuple[float, int, int]]()
    for seconds, whole, part in steps:
        now += seconds
        tally.add(now, whole=whole, part=part)
        events.append((now, whole, part))
        for counted, field in ((tally.whole, 1), (tally.part, 2)):
            within, longer = (sum(e[field] for e in events if e[0] > now - s) for s in (WINDOW, 1.2 * WINDOW + 1e-6))
            assert within <= counted <= longer


def test_it_can_be_cleared() -> None:
    tally = Tally(WINDOW)
    tally.add(1.0, whole=3, part=2)
    tally.clear()
    tally.add(1.5, whole=1)
    assert (tally.whole, tally.part) == (1, 0)
