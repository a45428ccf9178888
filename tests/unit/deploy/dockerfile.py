"""As much of a Dockerfile as its tests ask for."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for each, rest in self.instructions if each == word]

    def copies(self) -> set[str]:
        """What is copied from the build context."""
        sources: set[str] = set()
        for rest in self.all("COPY"):
            words = [word for word in rest.split() if not word.startswith("--chmod")]
            if not words[0].startswith("--from"):
                sources |= set(words[:-1])
        return sources

    def environment(self) -> dict[str, str]:
        pairs = (word.partition("=") for rest in self.all("ENV") for word in shlex.split(rest))
        return {name: value for name, _, value in pairs}

    def command(self, word: str) -> Any:
        """Of ENTRYPOINT, or of a HEALTHCHECK's CMD."""
        return json.loads(self.all(word)[-1].partition("CMD ")[2] or self.all(word)[-1])


@dataclass
class Dockerfile:
    arguments: dict[str, str]
    stages: dict[str, Stage]

    def whole(self, name: str) -> Stage:
        """A stage with all that it is built on here."""
        stage = self.stages[name]
        if stage.base not in self.stages:
            return stage
        below = self.whole(stage.base)
        return Stage(name, below.base, [*below.instructions, *stage.instructions])


def read(path: Path) -> Dockerfile:
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text())
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    arguments, stages = dict[str, str](), dict[str, Stage]()
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name or "final"] = latest = Stage(name or "final", base)
        elif not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            latest.instructions.append((word, rest.strip()))
    return Dockerfile(arguments, stages)
