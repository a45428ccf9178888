"""Stories of a small river world: a plot is a row of beats, a beat is a choice of sentences, a sentence has slots."""

import re
from dataclasses import dataclass
from random import Random

from .chat import Exchange, asked, bidden
from .words import load_words


@dataclass(frozen=True)
class Hero:
    """Who a story is about: kind ("fox"), proper name, pronoun and possessive."""

    kind: str
    name: str
    they: str
    their: str


_WORDS = load_words(__file__)
_KINDS: list[str] = _WORDS["kinds"]
_THINGS: list[str] = _WORDS["things"]
_PLACES: list[str] = _WORDS["places"]


@dataclass(frozen=True)
class Story:
    """A story's text and the facts that a listener may ask about."""

    text: str
    hero: Hero
    friend: Hero
    thing: str
    place: str


def _person(rng: Random, kind: str, taken: str = "") -> Hero:
    is_her = kind in _WORDS["her_kinds"] or (kind not in _WORDS["his_kinds"] and rng.random() < 0.5)
    name = rng.choice([name for name in (_WORDS["her_names"] if is_her else _WORDS["his_names"]) if name != taken])
    return Hero(kind, name, "she", "her") if is_her else Hero(kind, name, "he", "his")


def _slots(rng: Random, hero: Hero, friend: Hero, thing: str, place: str) -> dict[str, str]:
    """Every slot's word for one story, so that a thing keeps its colour from the first beat to the last."""
    trait = rng.choice(_WORDS["traits"])
    return {
        "kind": hero.kind, "name": hero.name, "they": hero.they, "their": hero.their,
        "They": hero.they.capitalize(), "Their": hero.their.capitalize(),
        "friend": friend.name, "friend_kind": friend.kind, "a_friend_kind": _a(friend.kind),
        "thing": thing, "a_thing": _a(thing), "place": place,
        "a_trait": _a(trait), "a_trait2": _a(rng.choice(_WORDS["traits"])), "colour": rng.choice(_WORDS["colours"]),
        "food": rng.choice(_WORDS["foods"]), "season": rng.choice(_WORDS["seasons"]),
        "weather": rng.choice(_WORDS["weathers"]),
    }  # fmt: skip


def make_story(rng: Random, kind: str = "", other: str = "", short: bool = False) -> Story:
    """A story about a hero of this kind and another noun: a creature, a thing or a place of this world."""
    hero = _person(rng, kind or rng.choice(_KINDS))
    friend_kind = other if other in _KINDS else rng.choice([word for word in _KINDS if word != hero.kind])
    friend = _person(rng, friend_kind, taken=hero.name)
    thing = other if other in _THINGS else rng.choice(_THINGS)
    place = other if other in _PLACES else rng.choice(_PLACES)
    beats = [rng.choice(choices) for choices in rng.choice(_WORDS["plots"])["beats"]]
    if short:
        beats = beats[:1] + beats[2:3] + beats[4:5]
    lines = [
        rng.choice(_WORDS["openings"]),
        *([] if short else [rng.choice(_WORDS["settings"])]),
        *beats,
        rng.choice(_WORDS["endings"]),
    ]
    text = " ".join(lines).format_map(_slots(rng, hero, friend, thing, place))
    if not short and rng.random() < 0.4:
        text = _in_paragraphs(text)
    return Story(text, hero, friend, thing, place)


def _in_paragraphs(text: str) -> str:
    """The same story broken into paragraphs of three sentences."""
    sentences = re.split(r'(?<=[.!?]) |(?<=[.!?]") (?=[A-Z"])', text)
    return "\n\n".join(" ".join(sentences[i : i + 3]) for i in range(0, len(sentences), 3))


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def story_about(rng: Random) -> list[Exchange]:
    """A wish for a story about two nouns, the story, and sometimes questions about it."""
    kind, other = rng.choice(_KINDS), rng.choice(_KINDS + _THINGS + _PLACES)
    other = other if other != kind else "weir"
    short = rng.random() < 0.35
    sort = rng.choice(("short ", "little ", "very short ", "tiny ") if short else ("", "", "long ", "new ", "nice "))
    other_noun = rng.choice((_a(other), f"the {other}"))
    topic = rng.choice((f"{_a(kind)} and {other_noun}", f"{_a(kind)} and {other_noun}", _a(kind)))
    if not topic.endswith(other):
        other = ""
    verb = rng.choice(("Write", "Tell me", "Write me", "Make up", "Tell", "Give me"))
    wish = f"{verb} a {sort}{rng.choice(('story', 'story', 'story', 'tale', 'bedtime story'))} about {topic}."
    story = make_story(rng, kind, other, short)
    return [(bidden(rng, wish), _introduced(rng, story)), *_story_follow_ups(rng, story)]


def any_story(rng: Random) -> list[Exchange]:
    """A wish for a story on no subject, and sometimes for another one."""
    wish: str = rng.choice(_WORDS["any_story_wishes"])
    story = make_story(rng, short="short" in wish)
    return [(bidden(rng, wish), _introduced(rng, story)), *_story_follow_ups(rng, story)]


def _introduced(rng: Random, story: Story) -> str:
    if rng.random() < 0.85:
        return story.text
    lead = rng.choice(("Here is a story.", "Of course. Here it is.", "Gladly.", "Sure, here you go."))
    return f"{lead}\n\n{story.text}"


def _story_follow_ups(rng: Random, story: Story) -> list[Exchange]:
    hero, friend = story.hero, story.friend
    more = make_story(rng, short=True)
    choices: list[Exchange] = [
        (f"What was the name of the {hero.kind}?", f"The {hero.kind} was called {hero.name}."),
        (f"Who was {hero.name}?", f"{hero.name} was the {hero.kind} in the story."),
        (f"Who was {friend.name}?", f"{friend.name} was the {friend.kind} who met {hero.name}."),
        ("Who is the story about?", f"It is about {_a(hero.kind)} called {hero.name}."),
        ("Where does the story happen?", f"It happens near the {story.place}."),
        (rng.choice(("Another one, please.", "Another story!", "One more, please.", "More!", "Again.")), more.text),
        (
            rng.choice(("I liked it.", "That was nice.", "Nice story!", "Beautiful.", "Thank you, I liked it.")),
            rng.choice(("Thank you! I am glad that you liked it.", "Thank you. Would you like another one?")),
        ),
    ]
    choices = [c for c in choices if friend.name not in c[0] or friend.name in story.text]
    count = rng.choices((0, 1, 2), (0.6, 0.3, 0.1))[0]
    return [(asked(rng, question), answer) for question, answer in rng.sample(choices, count)]


def poem(rng: Random) -> list[Exchange]:
    """A wish for a poem or a haiku."""
    subject = rng.choice(("", "", " about the river", " about a mill", " about rain", " about a weir", " about water"))
    if rng.random() < 0.4:
        text = "\n".join(rng.choice(lines) for lines in _WORDS["haiku_lines"])
        return [(bidden(rng, f"{rng.choice(('Write', 'Give me', 'Make'))} a haiku{subject}."), text)]
    pairs = rng.sample(_WORDS["poem_rhymes"], rng.choice((2, 2, 3, 4)))
    text = "\n".join(_WORDS["poem_lines"][i] for pair in pairs for i in pair).rstrip(",") + "."
    verb = rng.choice(("Write", "Write me", "Tell me", "Give me"))
    return [(bidden(rng, f"{verb} a {rng.choice(('', 'short ', 'little '))}poem{subject}."), text)]


def plain_story(rng: Random) -> str:
    """A story as running text, sometimes two in a row under titles, for prompts that are not chats."""
    story = make_story(rng, short=rng.random() < 0.2)
    if rng.random() < 0.35:
        return f"The {story.hero.kind.capitalize()} and the {story.place.capitalize()}\n\n{story.text}\n"
    return story.text + "\n"
