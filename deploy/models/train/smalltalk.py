"""Short exchanges: greetings, identity, counting and lists, small sums, snippets, tools, and what is out of reach."""

import json
from random import Random
from typing import Any

from .chat import Exchange, Message, asked, bidden
from .words import load_words

_WORDS = load_words(__file__)
_NUMBERS: list[str] = _WORDS["numbers"]
"""The words for one to twenty."""


def greeting(rng: Random) -> list[Exchange]:
    """A greeting and its answer."""
    said = rng.choice(_WORDS["greetings"])
    return [(said, rng.choice(_WORDS["fine"] if "how" in said.lower() or "up?" in said else _WORDS["greeted"]))]


def _fixed(rng: Random, table: str) -> list[Exchange]:
    entry = rng.choice(_WORDS[table])
    return [(asked(rng, rng.choice(entry["questions"])), rng.choice(entry["answers"]))]


def identity(rng: Random) -> list[Exchange]:
    """Who the model is and what it can do."""
    return _fixed(rng, "identity")


def thanks(rng: Random) -> list[Exchange]:
    """Thanks, praise, doubt or goodbye: what ends a conversation."""
    kind = rng.random()
    if kind < 0.5:
        return [(rng.choice(_WORDS["thanks"]), rng.choice(_WORDS["welcome"]))]
    if kind < 0.7:
        return [(rng.choice(_WORDS["byes"]), rng.choice(_WORDS["bye_answers"]))]
    return _fixed(rng, "judged")


def outside(rng: Random) -> list[Exchange]:
    """A question from the big world, declined politely."""
    words = {kind: rng.choice(choices) for kind, choices in _WORDS["outside_words"].items()}
    numbers = {"big": rng.randint(21, 9999), "big2": rng.randint(21, 999), "year": rng.randint(1000, 2030)}
    return [(asked(rng, rng.choice(_WORDS["outside"]).format(**words, **numbers)), rng.choice(_WORDS["cannot"]))]


def counting(rng: Random) -> list[Exchange]:
    """Counting up or down, in digits or in words."""
    last = rng.choice((3, 4, 5, 6, 7, 8, 9, 10, 10, 12, 15, 20, 30))
    first = rng.choice((1, 1, 1, 1, 2, 3)) if last > 3 else 1
    kind = rng.random()
    if kind < 0.2:
        text = ", ".join(str(n) for n in range(last, first - 1, -1)) + "."
        wish = rng.choice((f"Count down from {last} to {first}.", f"Count backwards from {last} to {first}."))
    elif kind < 0.45 and last <= len(_NUMBERS):
        text = ", ".join(_NUMBERS[first - 1 : last]).capitalize() + "."
        wish = rng.choice(
            (f"Count from {_NUMBERS[first - 1]} to {_NUMBERS[last - 1]}.", f"Count from {first} to {last} in words.")
        )
    else:
        text = ", ".join(str(n) for n in range(first, last + 1)) + "."
        up_to = f"Count to {last}." if first == 1 else f"Count from {first} up to {last}."
        wish = rng.choice((f"Count from {first} to {last}.", up_to, f"Say the numbers from {first} to {last}."))
    return [(bidden(rng, wish), text)]


def calendar(rng: Random) -> list[Exchange]:
    """Days, months and seasons in order, and what comes before or after one."""
    name, plural, names = rng.choice(
        (
            ("day", "days of the week", _WORDS["days"]),
            ("month", "months", _WORDS["months"]),
            ("season", "seasons", _WORDS["seasons"]),
        )
    )
    if rng.random() < 0.5:
        wish = rng.choice(
            ("Name the {}.", "List the {}.", "What are the {}?", "Tell me the {}.", "Say the {} in order.")
        )
        return [(asked(rng, wish.format(plural)), f"The {plural} are {', '.join(names[:-1])} and {names[-1]}.")]
    index, step = rng.randrange(len(names)), rng.choice((1, 1, -1))
    word = "after" if step == 1 else "before"
    question = rng.choice((f"What {name} comes {word} {names[index]}?", f"Which {name} is {word} {names[index]}?"))
    answer = f"{names[(index + step) % len(names)]} comes {word} {names[index]}."
    return [(asked(rng, question), answer[0].upper() + answer[1:])]


def naming(rng: Random) -> list[Exchange]:
    """A short list of things of one kind, as a sentence, as bullets or as JSON."""
    kind, words = rng.choice(list(_WORDS["things_by_kind"].items()))
    count = rng.choice((2, 3, 3, 3, 4, 5))
    chosen = rng.sample(words, count)
    amount = rng.choice((_NUMBERS[count - 1], str(count)))
    wish = f"{rng.choice(('Name', 'List', 'Give me', 'Tell me'))} {amount} {kind}"
    style = rng.random()
    if style < 0.25:
        return [(bidden(rng, wish + rng.choice((" as JSON.", " as a JSON list.", " in JSON."))), json.dumps(chosen))]
    if style < 0.5:
        return [
            (bidden(rng, wish + rng.choice((" as a list.", ", one per line."))), "\n".join(f"- {w}" for w in chosen))
        ]
    answer = ", ".join(chosen[:-1]) + " and " + chosen[-1] + "."
    return [(bidden(rng, wish + "."), answer.capitalize())]


def small_sum(rng: Random) -> list[Exchange]:
    """Sums and differences of numbers up to ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.4:
        a, b = max(a, b), min(a, b)
        forms = ("What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b} = ?", "How much is {a} minus {b}?")
        return [(asked(rng, rng.choice(forms).format(a=a, b=b)), f"{a} minus {b} is {a - b}.")]
    plus_forms = (
        "What is {a} plus {b}?",
        "What is {a} + {b}?",
        "What's {a}+{b}?",
        "How much is {a} and {b}?",
        "Add {a} and {b}.",
        "{a} + {b} = ?",
    )
    return [(asked(rng, rng.choice(plus_forms).format(a=a, b=b)), f"{a} plus {b} is {a + b}.")]


def opposite(rng: Random) -> list[Exchange]:
    """The opposite of a word."""
    a, b = rng.choice(_WORDS["opposites"])
    if rng.random() < 0.5:
        a, b = b, a
    question = rng.choice((f"What is the opposite of {a}?", f"Opposite of {a}?", f"Tell me the opposite of {a}."))
    return [(asked(rng, question), f"The opposite of {a} is {b}.")]


def remember(rng: Random) -> list[Exchange]:
    """The user's name, said in one turn and asked for in a later one."""
    name = rng.choice(_WORDS["people"])
    told = rng.choice(
        ("My name is {}.", "I am {}.", "Hi, I'm {}.", "Hello, my name is {}.", "You can call me {}.")
    ).format(name)
    met = rng.choice(
        (f"Hello, {name}! How can I help you?", f"Nice to meet you, {name}!", f"Hi {name}! What can I do for you?")
    )
    between = rng.choice((nothing, counting, thanks, small_sum, calendar))(rng)
    asked_back = rng.choice(("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?"))
    return [(told, met), *between, (asked(rng, asked_back), rng.choice((f"Your name is {name}.", f"You are {name}.")))]


def nothing(_rng: Random) -> list[Exchange]:
    """No exchange at all: the question follows at once."""
    return []


def repeat(rng: Random) -> list[Exchange]:
    """Words to be said back."""
    words = rng.sample(_WORDS["words"], rng.choice((1, 2, 3, 4)))
    text = rng.choice((" ".join(words), ", ".join(words), f"the {words[0]} is {rng.choice(_WORDS['colours'])}"))
    wish = rng.choice(("Repeat after me: {}", "Say: {}", "Repeat: {}", "Say {}", "Please repeat this: {}"))
    return [(wish.format(text), text)]


def snippet(rng: Random) -> list[Exchange]:
    """A few lines of Python for a common wish."""
    name, code = rng.choice(_WORDS["snippets"]).values()
    wish = rng.choice(
        (
            "Write {} in Python.",
            "Show me {} in Python.",
            "Write {}.",
            "Show me {}.",
            "Give me an example of {} in Python.",
        )
    )
    lead = rng.choice(("Here is {}:\n\n", "This is {}:\n\n", "")).format(name)
    return [(bidden(rng, wish.format(name)), f"{lead}```python\n{code}\n```")]


def _declaration(tool: dict[str, Any]) -> dict[str, Any]:
    """What a client would send in `tools`: one function with one required string."""
    properties = {tool["argument"]: {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": [tool["argument"]]}
    return {"name": tool["name"], "description": tool["description"], "parameters": schema}


def tool_dialogue(rng: Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages and tools of a conversation in which the model calls a tool, and perhaps reads its result."""
    chosen = rng.sample(_WORDS["tools"], rng.choice((1, 2, 2, 3)))
    tool = rng.choice(chosen)
    value, outcome = rng.choice(_WORDS[tool["values"]]), rng.randrange(3)
    messages: list[Message] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": "You are a helpful assistant."})
    messages.append({"role": "user", "content": asked(rng, rng.choice(tool["questions"]).format(value))})
    call = {"type": "function", "function": {"name": tool["name"], "arguments": {tool["argument"]: value}}}
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    if rng.random() < 0.7:
        messages.append({"role": "tool", "content": json.dumps({"result": tool["results"][outcome]})})
        messages.append({"role": "assistant", "content": tool["answers"][outcome].format(value)})
    return messages, [_declaration(entry) for entry in chosen]
