"""What the model knows about Python: facts and prose read from the running interpreter's own standard library."""

import ast
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

from .chat import Exchange, asked, bidden
from .words import load_words

_WORDS = load_words(__file__)
PURPOSES: dict[str, str] = _WORDS["purposes"]
"""Module → what it does, in the model's own words."""

_FUNCTIONS_PER_MODULE = 9
"""More would not be remembered by a model of this size."""


@dataclass(frozen=True)
class Fact:
    """One public function or class: its module, name, kind, signature ("" where there is none) and first sentence."""

    module: str
    name: str
    kind: str
    signature: str
    sentence: str


def _first_sentence(docstring: str | None) -> str:
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)\]'\"])\.(?=\s|$)", paragraph)[0].strip()
    return sentence + "." if sentence and not sentence.endswith((".", ":", "?")) else sentence


def _signature(member: object) -> str:
    try:
        text = str(inspect.signature(member))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return text if len(text) <= 50 and " at 0x" not in text and "<" not in text else ""


def _is_readable(sentence: str) -> bool:
    plain = sentence.isascii() and "->" not in sentence and "(" not in sentence[:12] and "::" not in sentence
    return plain and 20 <= len(sentence) <= 110 and sentence[0].isupper() and sentence.endswith(".")


def _members(module: ModuleType) -> Iterator[tuple[str, object]]:
    names = getattr(module, "__all__", None) or sorted(vars(module))
    for name in names:
        member = getattr(module, name, None)
        own = getattr(member, "__module__", module.__name__) or module.__name__
        if not name.startswith("_") and callable(member) and own.lstrip("_").split(".")[0] != "typing":
            yield name, member


def module_facts(module_name: str) -> list[Fact]:
    """The facts of one module, in its own order, at most `_FUNCTIONS_PER_MODULE`."""
    facts = []
    for name, member in _members(importlib.import_module(module_name)):
        sentence = _first_sentence(inspect.getdoc(member))
        if _is_readable(sentence) and not (inspect.isclass(member) and issubclass(member, Exception)):
            kind = "class" if inspect.isclass(member) else "function"
            facts.append(Fact(module_name, name, kind, _signature(member), sentence))
    return facts[:_FUNCTIONS_PER_MODULE]


def all_facts() -> list[Fact]:
    """The facts of every listed module; two functions with one sentence keep only the first."""
    seen: set[str] = set()
    facts = []
    for fact in (fact for module_name in PURPOSES for fact in module_facts(module_name)):
        if fact.sentence not in seen:
            seen.add(fact.sentence)
            facts.append(fact)
    return facts


class StdlibGuide:
    """Makes exchanges about the standard library from facts that were read once."""

    def __init__(self) -> None:
        self.facts = all_facts()
        self._by_module = {m: [f for f in self.facts if f.module == m] for m in PURPOSES}

    def module_purpose(self, rng: Random) -> list[Exchange]:
        """What a module does, or which module does something; sometimes one of its functions after it."""
        module = rng.choice(list(PURPOSES))
        purpose = PURPOSES[module]
        if rng.random() < 0.3:
            question = rng.choice(_WORDS["which_questions"]).format(m=module, p=purpose)
            return [(asked(rng, question), rng.choice(_WORDS["which_answers"]).format(m=module, p=purpose))]
        answer = rng.choice(_WORDS["module_answers"]).format(m=module, p=purpose)
        exchanges = [(asked(rng, rng.choice(_WORDS["module_questions"]).format(m=module)), answer)]
        if self._by_module[module] and rng.random() < 0.3:
            exchanges += self._names(
                rng, module, "Name some of its functions." if rng.random() < 0.5 else "What is in it?"
            )
        return exchanges

    def module_names(self, rng: Random) -> list[Exchange]:
        """A few names that a module offers."""
        module = rng.choice([m for m, facts in self._by_module.items() if facts])
        return self._names(rng, module, rng.choice(_WORDS["names_questions"]).format(m=module))

    def _names(self, rng: Random, module: str, question: str) -> list[Exchange]:
        names = [fact.name for fact in self._by_module[module][:4]]
        listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        return [(asked(rng, question), f"The {module} module has {listed}, for example.")]

    def member(self, rng: Random) -> list[Exchange]:
        """What a function or class does, or which one does something."""
        fact = rng.choice(self.facts)
        slots = {"m": fact.module, "n": fact.name, "k": fact.kind, "s": fact.sentence}
        full_name = f"{fact.module}.{fact.name}"
        if rng.random() < 0.2:
            return [(rng.choice(_WORDS["find_questions"]).format(**slots), f"That is {full_name}.")]
        answer = rng.choice(("{f}: {s}", "{f} is a {k}: {s}", "{s}")).format(f=full_name, **slots)
        exchanges = [(asked(rng, rng.choice(_WORDS["member_questions"]).format(**slots)), answer)]
        if fact.signature and rng.random() < 0.2:
            called = rng.choice(("How do I call it?", "What is its signature?", "Which arguments does it take?"))
            exchanges.append((asked(rng, called), f"{full_name}{fact.signature}"))
        return exchanges

    def import_snippet(self, rng: Random) -> list[Exchange]:
        """How to import a name."""
        fact = rng.choice(self.facts)
        wish = rng.choice(("How do I import {n} from {m}?", "Import {n} from {m}.", "Show me the import for {m}.{n}."))
        return [
            (
                bidden(rng, wish.format(n=fact.name, m=fact.module)),
                f"```python\nfrom {fact.module} import {fact.name}\n```",
            )
        ]


_SKIPPED_FOLDERS = frozenset(_WORDS["skipped_folders"])


def source_files() -> list[Path]:
    """The standard library's own sources, sorted, without its tests and its data tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    return sorted(files)


def docstrings(path: Path) -> list[str]:
    """Every plain-English docstring of one source file that is long enough to read, in order."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [(node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [_titled(node, text) for node, text in found if text and text.isascii() and 60 <= len(text) <= 3000]


def _titled(node: ast.AST, text: str) -> str:
    """The docstring under the line that it documents, so that a raw prompt "def name" has a likely answer."""
    name = getattr(node, "name", "")
    if not name:
        return text + "\n"
    keyword = "class" if isinstance(node, ast.ClassDef) else "def"
    return f'{keyword} {name}:\n"""{text}"""\n'


def code_samples() -> list[str]:
    """Whole small sources, each as one document."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [(root / name).read_text(encoding="utf-8") for name in _WORDS["code_files"] if (root / name).exists()]


def plain_fact(rng: Random, facts: list[Fact]) -> str:
    """A short reference page of one module's names, as running text."""
    module = rng.choice(list(PURPOSES))
    own = [f"{f.module}.{f.name}{f.signature}\n    {f.sentence}" for f in facts if f.module == module]
    return f"{module}\n\nThe {module} module {PURPOSES[module]}.\n\n" + "\n".join(own[:5]) + "\n"
