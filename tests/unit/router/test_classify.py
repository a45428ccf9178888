"""The classifier against a person's labels. What it takes is measured by `python -m unit.router.test_classify`."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.labelled_prompts import HELD_OUT, TUNED
from weir_router.models.classify import Kind, classify
from weir_router.models.config import SelectionTable

LEAST_CONFIDENCE = SelectionTable(default="m").min_confidence


def verdicts(prompts: list[tuple[Kind, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for kind, text in prompts:
        told = classify(text)
        if told.kind is None or told.confidence < LEAST_CONFIDENCE:
            found["abstained"] += 1
        else:
            found["right" if told.kind == kind else "wrong"] += 1
    return found


def test_what_is_said_of_the_labelled_prompts() -> None:
    """Of 36 each: where it says something, it is right; of the second list, it says nothing of a fifth."""
    assert verdicts(TUNED) == {"right": 35, "abstained": 1}
    assert verdicts(HELD_OUT) == {"right": 29, "abstained": 7}


@pytest.mark.parametrize(
    "text", ["", "   ", "xyzzy", "Какая столица Монголии?", "今日はどうですか", "lorem ipsum " * 30]
)
def test_of_what_it_does_not_know_it_says_nothing(text: str) -> None:
    assert classify(text).confidence < LEAST_CONFIDENCE


def test_a_task_at_the_end_of_a_long_text_is_seen() -> None:
    assert classify("lorem ipsum dolor " * 5000 + "\nRefactor this Python class.").kind == "code"


@given(st.text(max_size=3000))
def test_the_same_text_gets_the_same_answer(text: str) -> None:
    told = classify(text)
    assert told == classify(text)
    assert 0.0 <= told.confidence <= 1.0
    assert (told.kind is None) <= (told.confidence == 0.0)


def main() -> None:
    """Prints what a text takes, in microseconds; the hostile ones are what its patterns like least."""
    labelled = [text for _, text in TUNED + HELD_OUT]
    texts = {"labelled": labelled, "long prose": [" ".join(labelled) * 20], "hostile": ["(a(b" * 20_000, "a" * 100_000]}
    for name, each in texts.items():
        spent = []
        for text in each * (3600 // len(each)):
            started = time.perf_counter()
            classify(text)
            spent.append(time.perf_counter() - started)
        spent.sort()
        p50, p99 = (1e6 * spent[int(len(spent) * share)] for share in (0.5, 0.99))
        print(f"{name}: p50 {p50:.0f} µs, p99 {p99:.0f} µs")


if __name__ == "__main__":
    main()
