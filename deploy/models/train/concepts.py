"""What the model can explain: rivers and weirs, and how a suite that serves language models works."""

from dataclasses import dataclass
from random import Random

from .chat import Exchange, asked, bidden
from .words import load_words


@dataclass(frozen=True)
class Concept:
    """One thing to explain. Names carry their article ("a weir"); what, how and why are whole sentences."""

    name: str
    what: list[str]
    how: list[str]
    why: list[str]
    aliases: tuple[str, ...] = ()


_WORDS = load_words(__file__)
RIVER = tuple(Concept(**entry) for entry in _WORDS["river"])
SERVING = tuple(Concept(**entry) for entry in _WORDS["serving"])
CONCEPTS = RIVER + SERVING

_SECTIONS = (("Rivers", RIVER), ("Serving", SERVING))


def _fill(template: str, name: str) -> str:
    """A question about a thing of this name; {bare} is the name without its article."""
    bare = name.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    text = template.format(name=name, bare=bare)
    return text[0].upper() + text[1:]


def explain(rng: Random, concepts: tuple[Concept, ...] = CONCEPTS) -> list[Exchange]:
    """A question about one concept, its answer, and sometimes "how?" and "why?" after it."""
    concept = rng.choice(concepts)
    what, how, why = rng.choice(concept.what), rng.choice(concept.how), rng.choice(concept.why)
    name = rng.choice((concept.name, *concept.aliases)) if rng.random() < 0.6 else concept.name
    kind = rng.random()
    if kind < 0.15:
        return [(asked(rng, _fill(rng.choice(_WORDS["how_questions"]), name)), how)]
    if kind < 0.3:
        return [(asked(rng, _fill(rng.choice(_WORDS["why_questions"]), name)), why)]
    tail = rng.choices(("", " " + how, " " + why, f" {how} {why}"), (0.4, 0.3, 0.1, 0.2))[0]
    exchanges = [(bidden_or_asked(rng, _fill(rng.choice(_WORDS["what_questions"]), name)), what + tail)]
    if how not in tail and rng.random() < 0.35:
        exchanges.append((asked(rng, rng.choice(_WORDS["more_questions"])), how))
    if why not in tail and rng.random() < 0.3:
        exchanges.append((asked(rng, rng.choice(_WORDS["and_why_questions"])), why))
    return exchanges


def bidden_or_asked(rng: Random, text: str) -> str:
    """Commands may be made polite; questions may not."""
    return bidden(rng, text) if text.endswith(".") and not text.startswith("I ") else asked(rng, text)


def compare(rng: Random) -> list[Exchange]:
    """The difference between two concepts."""
    difference = rng.choice(_WORDS["differences"])
    a, b = difference["between"]
    if rng.random() < 0.4:
        a, b = b, a
    question = rng.choice(_WORDS["compare_questions"]).format(a=a, b=b)
    return [(asked(rng, question[0].upper() + question[1:]), difference["answer"])]


def list_or_route(rng: Random) -> list[Exchange]:
    """A question with one fixed answer: lists, routes and names."""
    entry = rng.choice(_WORDS["fixed"])
    return [(bidden_or_asked(rng, rng.choice(entry["questions"])), entry["answer"])]


def plain_article(rng: Random) -> str:
    """A few concepts explained as running text, for prompts that are not chats."""
    title, concepts = rng.choice(_SECTIONS)
    paragraphs = [
        f"{rng.choice(c.what)} {rng.choice(c.how)} {rng.choice(c.why)}" for c in rng.sample(concepts, rng.randint(2, 4))
    ]
    return f"{title}\n\n" + "\n\n".join(paragraphs) + "\n"
