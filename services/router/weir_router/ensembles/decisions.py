"""What the members' answers come to. Pure: each function looks at what there is, and says what it means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from weir_router.ensembles.plan import Judge, Step

_WORDS: Final = re.compile(r"\w+")
_NUMBER: Final = re.compile(r"\d{1,2}")


def abstains(step: Step, text: str, mean_logprob: float | None) -> bool:
    """Whether a model of a cascade is not sure of its answer. One that has no tokens has nothing to be sure of."""
    if any(marker in text for marker in step.abstain_markers):
        return True
    if step.min_mean_logprob is None:
        return False
    return mean_logprob is None or mean_logprob < step.min_mean_logprob


def same_words(text: str) -> str:
    """Equal for answers that say the same: case, spaces and punctuation do not count."""
    return " ".join(_WORDS.findall(text.casefold()))


def agreed(answers: Mapping[int, str], quorum: int) -> list[int] | None:
    """Voters, in order, of whom so many say the same. None: they do not, or not yet."""
    said = {voter: same_words(text) for voter, text in sorted(answers.items())}
    counts = Counter(said.values())
    if not counts:
        return None
    # Of answers that are given as often, the one of the first voter: only one can have more than half.
    words, count = max(counts.items(), key=lambda item: item[1])
    return [voter for voter, each in said.items() if each == words] if count >= quorum else None


def may_agree(answers: Mapping[int, str], waiting: int, quorum: int) -> bool:
    """Whether those who have not answered yet could still make it so many."""
    counts = Counter(map(same_words, answers.values()))
    return max(counts.values(), default=0) + waiting >= quorum


def turned(candidates: Sequence[int], judge: int) -> list[int]:
    """The order in which a judge sees them: each begins elsewhere, for judges like what they see first."""
    start = judge % len(candidates)
    return [*candidates[start:], *candidates[:start]]


def question(asked: str, answers: Sequence[str]) -> str:
    """For a judge. It answers with one number, from 1."""
    told = "\n\n".join(f"Answer {number}:\n{text}" for number, text in enumerate(answers, 1))
    return (
        f"Several answers were given to the same request.\n\nRequest:\n{asked}\n\n{told}\n\n"
        f"Which answer is the best one? Reply with its number and nothing else: 1 to {len(answers)}."
    )


def chosen_by(text: str, shown: Sequence[int]) -> int | None:
    """The candidate whom a judge means, who saw them in this order. None: it is no answer to the question."""
    found = _NUMBER.search(text)
    if found is None or not 1 <= int(found.group()) <= len(shown):
        return None
    return shown[int(found.group()) - 1]


def winner(choices: Mapping[int, int], judges: Sequence[Judge], quorum: int) -> int | None:
    """The candidate with most weight, of equals the first; None while fewer judges than that have chosen.

    `choices`: candidates by judge.
    """
    if len(choices) < quorum:
        return None
    weights: Counter[int] = Counter()
    for judge, candidate in choices.items():
        weights[candidate] += judges[judge].weight  # type: ignore[assignment]  # counters add up floats as well
    return min(weights, key=lambda candidate: (-weights[candidate], candidate))
