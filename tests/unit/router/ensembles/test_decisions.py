from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_router.ensembles.decisions import (
    abstains,
    agreed,
    chosen_by,
    may_agree,
    question,
    same_words,
    turned,
    winner,
)
from weir_router.ensembles.plan import Judge, Step

ANSWERS = st.dictionaries(st.integers(0, 7), st.sampled_from(["yes", "Yes.", "no", "maybe"]))


@pytest.mark.parametrize(
    ("step", "text", "mean", "expected"),
    [
        (Step("m", None, ()), "x", None, False),
        (Step("m", -0.5, ()), "x", -0.4, False),
        (Step("m", -0.5, ()), "x", -0.6, True),
        (Step("m", -0.5, ()), "", None, True),
        (Step("m", None, ("I do not know",)), "Well, I do not know.", None, True),
        (Step("m", -9.0, ("unsure",)), "sure", -0.1, False),
    ],
)
def test_who_is_not_sure_abstains(step: Step, text: str, mean: float | None, expected: bool) -> None:
    assert abstains(step, text, mean) is expected


def test_answers_are_the_same_by_their_words() -> None:
    assert same_words(" The answer, is:\n42! ") == same_words("the answer is 42")
    assert same_words("4 2") != same_words("42")


@given(ANSWERS, st.integers(1, 8))
def test_so_many_say_the_same_or_nobody_is_taken(answers: dict[int, str], quorum: int) -> None:
    said = {voter: same_words(text) for voter, text in answers.items()}
    most = max(Counter(said.values()).values(), default=0)
    found = agreed(answers, quorum)
    assert (found is not None) == (most >= quorum)
    if found is not None:
        assert found == sorted(voter for voter in said if said[voter] == said[found[0]])
        assert len(found) == most


@given(ANSWERS, st.integers(0, 4), st.integers(1, 8))
def test_a_vote_ends_early_only_when_nothing_could_change_it(
    answers: dict[int, str], waiting: int, quorum: int
) -> None:
    """Best and worst of what those who wait might still say."""
    later = {100 + index: next(iter(answers.values()), "yes") for index in range(waiting)}
    most_common = Counter(map(same_words, answers.values())).most_common(1)
    if most_common:
        later = dict.fromkeys(later, most_common[0][0])
    assert may_agree(answers, waiting, quorum) == (agreed({**answers, **later}, quorum) is not None)


def test_each_judge_sees_another_answer_first() -> None:
    orders = [turned([0, 2, 5], judge) for judge in range(4)]
    assert orders == [[0, 2, 5], [2, 5, 0], [5, 0, 2], [0, 2, 5]]
    asked = question("Why?", ["because", "so"])
    assert asked.index("Answer 1:\nbecause") < asked.index("Answer 2:\nso")
    assert asked.endswith("1 to 2.")


@pytest.mark.parametrize(
    ("text", "choice"), [("2", 7), ("Answer 1.", 4), ("3", None), ("0", None), ("none", None), ("", None)]
)
def test_what_a_judge_means(text: str, choice: int | None) -> None:
    assert chosen_by(text, [4, 7]) == choice


@given(st.dictionaries(st.integers(0, 3), st.integers(0, 2)), st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_the_winner_has_most_weight(choices: dict[int, int], weights: list[int]) -> None:
    judges = [Judge("j", float(weight)) for weight in weights]
    best = winner(choices, judges, 1)
    totals = {c: sum(weights[judge] for judge, choice in choices.items() if choice == c) for c in choices.values()}
    assert best == min((c for c in totals if totals[c] == max(totals.values())), default=None)
    assert winner(choices, judges, len(choices) + 1) is None
