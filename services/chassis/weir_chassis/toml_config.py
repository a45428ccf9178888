"""A TOML file as a checked, frozen object, and what is wrong with it in its own words. Pure: it opens none."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

_MAX_SHOWN_CHARS: Final = 80
# Where pydantic's own words name its insides.
_MESSAGES: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such key here",
}
# Beneath keys of these names, values are secrets or may hold some.
_SECRET_KEYS: Final = frozenset({"url", "api_key", "password", "token"})


class ConfigError(ValueError):
    """The file is wrong. One problem per line, each naming its key, and the limit that it breaks."""


class Table(BaseModel):
    """A table of the file: no keys but those it knows, and nobody changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T", bound=Table)


def parse_toml(
    table: type[T], text: str, *, messages: Mapping[str, str] | None = None, tags: Collection[str] = ()
) -> T:
    """Raises ConfigError. `messages`: what to say for an error of pydantic's, by its type, where its words are none.

    `tags`: values of the key that tells tables of one list apart; pydantic has them in its keys, and the file has not.
    """
    try:
        return table.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error, {**_MESSAGES, **(messages or {})}, tags))) from error


def overlaid(defaults: T, own: T) -> T:
    """What `own` says, and `defaults` where it says nothing; so in the tables within it, too."""
    changed = {name: getattr(own, name) for name in own.model_fields_set}
    for name, value in changed.items():
        base = getattr(defaults, name)
        if isinstance(value, Table) and isinstance(base, Table):
            changed[name] = overlaid(base, value)
    return defaults.model_copy(update=changed)


def _describe(error: ValidationError, messages: Mapping[str, str], tags: Collection[str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        message = messages.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        shown = "" if problem["type"] in messages else _shown(problem)
        yield f"{_key(problem['loc'], tags)}{shown}: {message}" if problem["loc"] else message


def _key(path: Sequence[int | str], tags: Collection[str]) -> str:
    """`tier[0].max_bytes`."""
    text = ""
    for before, part in zip((None, *path), path, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]" and not (isinstance(before, int) and part in tags):
            text += f".{part}" if text else part
    return text


def _shown(problem: Any) -> str:
    """The value, where it is a short one and holds no password."""
    value = problem["input"]
    if isinstance(value, (dict, list)) or _SECRET_KEYS.intersection(problem["loc"]):
        return ""
    return f"={repr(value)[:_MAX_SHOWN_CHARS]}"
