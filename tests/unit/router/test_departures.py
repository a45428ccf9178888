"""A model that has left is away for a while, and then unknown."""

from __future__ import annotations

from weir_router.fleet.departures import Departures


def test_a_model_that_left_is_away_until_it_is_back_or_forgotten() -> None:
    known = Departures()
    known.note(["a", "b"], 0.0)
    assert known.standing((), 1.0) == {"a", "b"}
    assert known.standing({"a"}, 2.0) == {"b"}
    assert known.standing((), 3.0) == {"b"}, "what came back has to leave again"
    assert known.standing((), 600.0) == frozenset()


def test_names_are_bounded_and_the_newest_stay() -> None:
    known = Departures()
    for number in range(1500):
        known.note([str(number)], float(number) / 1000)
    known.note(["700"], 2.0)
    standing = known.standing((), 2.0)
    assert len(standing) == 1000
    assert {"700", "1499"} <= standing
    assert "0" not in standing
