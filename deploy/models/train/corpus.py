"""The training text: conversations that this package makes, and prose and code of Python's standard library.

Run `python -m deploy.models.train.corpus --show 5` to read five documents.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from . import concepts, smalltalk, stories
from .chat import END_OF_TEXT, Exchange, Intent, as_messages, render
from .stdlib_facts import StdlibGuide, code_samples, docstrings, plain_fact, source_files
from .words import load_words

CHATS_PER_HELD_OUT = 100
"""Made documents that are trained on, for each that is held out."""

LIBRARY_HELD_OUT_EVERY = 30
"""One library text in this many is held out; there are few, so more of them."""

_WORDS = load_words(__file__)


@dataclass(frozen=True)
class Corpus:
    """Documents in training order, and those that were held out."""

    train: list[str]
    held_out: list[str]


def _weighted_intents(guide: StdlibGuide) -> tuple[list[Intent], list[float]]:
    """Each subject with its share of conversation openings (they need not sum to one)."""
    table: list[tuple[Intent, float]] = [
        (stories.story_about, 13), (stories.any_story, 4), (stories.poem, 3),
        (lambda rng: concepts.explain(rng, concepts.RIVER), 11),
        (lambda rng: concepts.explain(rng, concepts.SERVING), 18),
        (concepts.compare, 4), (concepts.list_or_route, 5),
        (guide.module_purpose, 10), (guide.member, 14), (guide.module_names, 3), (guide.import_snippet, 1.5),
        (smalltalk.greeting, 4), (smalltalk.identity, 6), (smalltalk.thanks, 3), (smalltalk.outside, 7),
        (smalltalk.counting, 3), (smalltalk.calendar, 2.5), (smalltalk.naming, 3), (smalltalk.small_sum, 3),
        (smalltalk.opposite, 1), (smalltalk.remember, 2), (smalltalk.repeat, 2), (smalltalk.snippet, 3),
    ]  # fmt: skip
    return [intent for intent, _ in table], [share for _, share in table]


def _first_sentences(exchanges: list[Exchange]) -> list[Exchange]:
    """The same exchanges, answered in one sentence each where the answer is prose."""
    return [(user, _first_sentence(said)) for user, said in exchanges]


def _first_sentence(said: str) -> str:
    if "\n" in said or ". " not in said:
        return said
    return said.split(". ", maxsplit=1)[0].rstrip(".") + "."


class ConversationMaker:
    """Strings exchanges on different subjects into whole conversations."""

    def __init__(self, guide: StdlibGuide) -> None:
        self._intents, self._shares = _weighted_intents(guide)

    def __call__(self, rng: Random) -> str:
        """One conversation as text, ended."""
        if rng.random() < 0.05:
            messages, tools = smalltalk.tool_dialogue(rng)
            return render(messages, tools) + END_OF_TEXT
        subject_count = rng.choices((1, 2, 3, 4), (0.55, 0.25, 0.13, 0.07))[0]
        exchanges: list[Exchange] = []
        if subject_count > 1 and rng.random() < 0.25:
            exchanges += smalltalk.greeting(rng)
        for _ in range(subject_count):
            exchanges += rng.choices(self._intents, self._shares)[0](rng)
        if subject_count > 1 and rng.random() < 0.25:
            exchanges += smalltalk.thanks(rng)
        style = rng.random()
        if style < 0.1 and all(len(said) < 400 for _, said in exchanges):
            return render(as_messages(_first_sentences(exchanges), rng.choice(_WORDS["brief_systems"]))) + END_OF_TEXT
        return render(as_messages(exchanges, rng.choice(_WORDS["systems"]) if style < 0.4 else "")) + END_OF_TEXT


def _made_texts(rng: Random, guide: StdlibGuide, count: int) -> Iterator[str]:
    """Running text of the river world and of the library's reference, for prompts that are not chats."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: stories.plain_story(rng), lambda: concepts.plain_article(rng), lambda: plain_fact(rng, guide.facts),
    )  # fmt: skip
    for _ in range(count):
        yield rng.choices(makers, (0.72, 0.18, 0.1))[0]() + END_OF_TEXT


def library_texts() -> list[str]:
    """Every docstring of the standard library and a little of its code, as documents."""
    texts = [text for path in source_files() for text in docstrings(path)] + code_samples()
    return [text + END_OF_TEXT for text in texts]


def make_corpus(seed: int, conversation_count: int, library: Sequence[str]) -> Corpus:
    """The whole corpus. The same seed, count and library give the same text.

    Held-out chats come from a seed of their own, held-out library texts from those that the training skips.
    """
    guide = StdlibGuide()
    skipped = library[::LIBRARY_HELD_OUT_EVERY]
    trained = [text for index, text in enumerate(library) if index % LIBRARY_HELD_OUT_EVERY]
    train = _documents(Random(seed), guide, conversation_count, trained)
    held_out = _documents(Random(seed + 1), guide, conversation_count // CHATS_PER_HELD_OUT, skipped)
    known = set(train)
    return Corpus(train, [text for text in held_out if text not in known])


def _documents(rng: Random, guide: StdlibGuide, conversation_count: int, library: Sequence[str]) -> list[str]:
    """Chats, made texts and library texts in one random order."""
    converse = ConversationMaker(guide)
    documents = [converse(rng) for _ in range(conversation_count)]
    documents += [*_made_texts(rng, guide, conversation_count // 12), *library]
    rng.shuffle(documents)
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--show", type=int, default=5, metavar="N", help="print N documents")
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.seed, conversation_count=max(200, arguments.show), library=library_texts())
    print(("\n" + "=" * 80 + "\n").join(corpus.train[: arguments.show]))


if __name__ == "__main__":
    main()
