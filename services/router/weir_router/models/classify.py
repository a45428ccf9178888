"""What kind of task a text is, by what stands in it. Deterministic and pure: no model, no table of learned numbers.

Each kind has signs with a weight; a text scores what of them it shows, each sign once. The kind that scores most is
meant, if it does so clearly: otherwise nothing is said, which is better than a guess. English only, but for code: a
text in another language shows few signs and mostly gets no answer.

Only so much of a text is read that the time is bounded, its beginning and its end: there a task is put.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["simple", "code", "complex"]

_HEAD_CHARS: Final = 1000
_TAIL_CHARS: Final = 300
# Below, a text shows too little to be of any kind: that it is short, or long, is not enough.
_LEAST_SCORE: Final = 1.5
_SHORT_WORDS: Final = 18
_LONG_WORDS: Final = 70


@dataclass(frozen=True, slots=True)
class Classification:
    """`kind` None: it abstains. `confidence` in [0, 1]: by how much of the whole score the kind leads the next."""

    kind: Kind | None
    confidence: float


# Patterns see the text in lower case. None of their repetitions is unbounded, so that no text can make them slow.
def _signs(*weighted: tuple[float, str]) -> Sequence[tuple[float, re.Pattern[str]]]:
    return [(weight, re.compile(pattern, re.MULTILINE)) for weight, pattern in weighted]


_SIGNS: Final[Mapping[Kind, Sequence[tuple[float, re.Pattern[str]]]]] = {
    "code": _signs(
        (3.0, r"```"),
        (2.0, r"\b(?:python|javascript|typescript|golang|rust|kotlin|haskell|java|bash|sql|html|css|yaml|php)\b"),
        (2.0, r"\b(?:c\+\+|c#)(?!\w)"),
        (2.0, r"\b(?:regex|regular expression|stack ?trace|traceback|segfault|unit tests?|pytest|makefile)\b"),
        (2.0, r"\b(?:kubernetes|docker|git|npm|pip|numpy|pandas|react|django|flask|postgres|grpc|protobuf|linux)\b"),
        (1.5, r"\b(?:functions?|method|class|variable|array|loop|compiler?|script|refactor|debug|code|codebase|api)\b"),
        (1.5, r"\b(?:algorithm|linked list|hash ?map|recursi(?:on|ve)|mutex|deadlock|race condition|null pointer)\b"),
        (1.5, r"\b\w{1,40}error\b|\b\w{1,40}exception\b|\berror: |\bundefined\b"),
        (2.0, r"^[ \t]{0,20}(?:def |class |import |from \w{1,40} import|#include|fn |func |const |let |var |select )"),
        (1.0, r"[{};]$|\w\([^()]{0,60}\)|\w\.\w{1,40}\(|=>|->|==|!="),
    ),
    "complex": _signs(
        (2.0, r"\b(?:prove|derive|proof|theorem|lemma|step[ -]by[ -]step|rigorous(?:ly)?)\b"),
        (2.0, r"\b(?:trade-?offs?|pros and cons|compare|contrast|critique|evaluate|assess|argue|justify)\b"),
        (2.0, r"\b(?:analy[sz]e|analysis|in depth|in detail|comprehensive|thorough(?:ly)?|nuanced?|implications?)\b"),
        (1.5, r"\b(?:design|plan|strateg(?:y|ies)|roadmap|architecture|proposal|essay|report|business case)\b"),
        (1.5, r"\b(?:explain (?:why|how)|why (?:did|do|does|is|are|might|would)|how (?:would|should|might|could))\b"),
        (1.0, r"\b(?:considering|assuming|given that|constraints?|scenario|hypothe(?:sis|tical)|perspectives?)\b"),
        (1.0, r"\b(?:first|then|finally|also|moreover|both)\b.{0,99}\b(?:then|finally|and|also)\b"),
    ),
    "simple": _signs(
        (2.0, r"^ ?(?:hi|hello|hey|thanks|thank you|good (?:morning|evening))\b"),
        (2.0, r"^ ?(?:what(?:'s| is| are| was)|who|when|where|which|how (?:many|much|old|far|tall|long))\b"),
        (2.0, r"^ ?(?:translate|define|spell|convert|name|list|summari[sz]e|rephrase|correct|rewrite|classify)\b"),
        (1.5, r"^ ?(?:is|are|was|does|do|did|can|will|has)\b.{0,80}\?$"),
        (1.0, r"\b(?:capital of|synonyms?|antonym|meaning of|population|birthday|recipe|weather|one word|briefly)\b"),
    ),
}


def classify(text: str) -> Classification:
    """Of a task in its author's own words."""
    text = text.strip()
    read = text if len(text) <= _HEAD_CHARS + _TAIL_CHARS else f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"
    read = read.lower()
    scores = {kind: _score(read, signs) for kind, signs in _SIGNS.items()}
    words = len(read.split())
    scores["simple"] += 1.0 if words <= _SHORT_WORDS else 0.0
    scores["complex"] += 1.0 if words >= _LONG_WORDS else 0.0
    first, second = sorted(scores, key=lambda kind: -scores[kind])[:2]
    total = sum(scores.values())
    if scores[first] < _LEAST_SCORE:
        return Classification(None, 0.0)
    return Classification(first, (scores[first] - scores[second]) / total)


def _score(text: str, signs: Sequence[tuple[float, re.Pattern[str]]]) -> float:
    return sum(weight for weight, sign in signs if sign.search(text))
