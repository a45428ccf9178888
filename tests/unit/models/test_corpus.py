"""The corpus maker: the same seed gives the same text, chats are well formed, and nothing held out is trained on."""

import textwrap
from pathlib import Path
from random import Random

import pytest
from deploy.models.train import concepts, smalltalk, stories
from deploy.models.train.chat import END_OF_TEXT, TURN_END, TURN_START, Intent
from deploy.models.train.corpus import ConversationMaker, make_corpus
from deploy.models.train.stdlib_facts import PURPOSES, StdlibGuide, docstrings

LIBRARY = [f"text {number}{END_OF_TEXT}" for number in range(10)]

INTENTS: tuple[Intent, ...] = (
    concepts.explain,
    concepts.compare,
    concepts.list_or_route,
    smalltalk.greeting,
    smalltalk.identity,
    smalltalk.thanks,
    smalltalk.outside,
    smalltalk.counting,
    smalltalk.calendar,
    smalltalk.naming,
    smalltalk.small_sum,
    smalltalk.opposite,
    smalltalk.remember,
    smalltalk.repeat,
    smalltalk.snippet,
    stories.story_about,
    stories.any_story,
    stories.poem,
)


def test_same_seed_same_corpus() -> None:
    first = make_corpus(seed=3, conversation_count=50, library=LIBRARY)
    assert make_corpus(seed=3, conversation_count=50, library=LIBRARY) == first
    assert make_corpus(seed=4, conversation_count=50, library=LIBRARY) != first


def test_held_out_documents_are_not_trained_on() -> None:
    corpus = make_corpus(seed=3, conversation_count=200, library=LIBRARY)
    assert not set(corpus.train) & set(corpus.held_out)
    assert LIBRARY[0] in corpus.held_out
    assert set(LIBRARY[1:]) <= set(corpus.train)
    assert all(text.endswith(END_OF_TEXT) for text in corpus.train + corpus.held_out)


def test_conversations_are_well_formed() -> None:
    converse = ConversationMaker(StdlibGuide())
    for seed in range(200):
        text = converse(Random(seed))
        turns = text.removesuffix(END_OF_TEXT).split(f"{TURN_END}\n")
        assert turns.pop() == ""
        roles = [turn.removeprefix(TURN_START).split("\n", maxsplit=1)[0] for turn in turns]
        assert set(roles) <= {"system", "user", "assistant", "tool"}
        assert roles.count("system") <= 1
        assert roles[-1] == "assistant"


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.__name__)
def test_exchanges_leave_no_slot_unfilled(intent: Intent) -> None:
    for seed in range(300):
        for user, assistant in intent(Random(seed)):
            assert user
            assert assistant
            assert "{name}" not in user + assistant
            assert TURN_END not in user + assistant


def test_docstrings_come_in_order_under_the_line_they_document() -> None:
    texts = docstrings(Path(textwrap.__file__))
    assert texts[0].startswith("class TextWrapper:")
    assert any(text.startswith('def dedent:\n"""Remove any common leading whitespace') for text in texts)


def test_every_listed_module_has_a_purpose_that_reads_as_a_sentence() -> None:
    assert all(purpose[0].islower() and not purpose.endswith(".") for purpose in PURPOSES.values())
