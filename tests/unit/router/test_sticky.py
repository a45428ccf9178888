"""Arms by weighted rendezvous: the right shares, and no subject that moves without need."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from weir_router.models.sticky import in_order, sampled

WEIGHTS = st.dictionaries(st.text(max_size=5), st.floats(0.0, 1e6), min_size=1, max_size=6)
SUBJECTS = [f"subject-{number}" for number in range(4000)]


def shares(weights: dict[str, float], experiment: str = "x") -> dict[str, float]:
    counts = Counter(in_order(weights, experiment, subject)[0] for subject in SUBJECTS)
    return {arm: counts[arm] / len(SUBJECTS) for arm in weights}


def test_arms_get_their_share_of_the_subjects() -> None:
    found = shares({"a": 70.0, "b": 25.0, "c": 5.0})
    # Five standard deviations of 4000 draws; the draws are hashes, so they are the same every time.
    assert abs(found["a"] - 0.70) < 0.037
    assert abs(found["b"] - 0.25) < 0.035
    assert abs(found["c"] - 0.05) < 0.018


@given(WEIGHTS, st.text(), st.text())
def test_the_same_subject_has_the_same_order_and_every_arm_with_a_weight_once(
    weights: dict[str, float], experiment: str, subject: str
) -> None:
    order = in_order(weights, experiment, subject)
    assert order == in_order(dict(reversed(weights.items())), experiment, subject)
    assert sorted(order) == sorted(arm for arm, weight in weights.items() if weight > 0)


@given(WEIGHTS, st.text(), st.floats(1.0, 100.0), st.data())
def test_an_arm_that_grows_takes_subjects_to_itself_only(
    weights: dict[str, float], subject: str, factor: float, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before, after = in_order(weights, "x", subject), in_order(weights | {grown: weights[grown] * factor}, "x", subject)
    assert after[:1] in (before[:1], [grown])
    assert [arm for arm in before if arm != grown] == [arm for arm in after if arm != grown]


def test_what_moves_is_what_must() -> None:
    """From 10 % to 20 %: one subject in ten, and each of them to the arm that grew."""
    before = {subject: in_order({"a": 90.0, "b": 10.0}, "x", subject)[0] for subject in SUBJECTS}
    after = {subject: in_order({"a": 80.0, "b": 20.0}, "x", subject)[0] for subject in SUBJECTS}
    moved = [subject for subject in SUBJECTS if before[subject] != after[subject]]
    assert {after[subject] for subject in moved} == {"b"}
    assert 0.08 < len(moved) / len(SUBJECTS) < 0.12


def test_experiments_are_independent_of_one_another() -> None:
    """Who is in one experiment's small arm is as likely as anybody to be in another's."""
    weights = {"a": 50.0, "b": 50.0}
    both = sum(in_order(weights, "x", s)[0] == "b" == in_order(weights, "y", s)[0] for s in SUBJECTS)
    assert 0.21 < both / len(SUBJECTS) < 0.29


def test_a_sample_has_its_size_and_its_own_members() -> None:
    chosen = {subject for subject in SUBJECTS if sampled(0.1, "shadow", subject)}
    assert 0.075 < len(chosen) / len(SUBJECTS) < 0.125
    assert chosen == {subject for subject in SUBJECTS if sampled(0.1, "shadow", subject)}
    assert not any(sampled(0.0, "shadow", subject) for subject in SUBJECTS)
    assert all(sampled(1.0, "shadow", subject) for subject in SUBJECTS)
