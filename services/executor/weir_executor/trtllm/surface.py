"""What this backend uses of TensorRT-LLM, read from `surface.toml`, and how an installed package differs from it."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("surface.toml")


@dataclass(frozen=True, slots=True)
class Names:
    """Parameters, fields or attributes of one thing."""

    needed: frozenset[str]
    optional: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    takes_kwargs: bool = False
    also: str = ""  # another name for it, of other versions

    @property
    def all(self) -> frozenset[str]:
        return self.needed | self.optional


@dataclass(frozen=True, slots=True)
class Surface:
    """By dotted name. `versions`: beginnings of those that were read."""

    versions: tuple[str, ...]
    callables: Mapping[str, Names]
    fields: Mapping[str, Names]
    attributes: Mapping[str, Names]
    objects: Mapping[str, frozenset[str]]
    keys: Mapping[str, frozenset[str]]


@cache
def surface() -> Surface:
    raw = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return Surface(
        versions=tuple(raw["versions"]),
        callables={name: _names(table) for name, table in raw["callables"].items()},
        fields={name: _names(table) for name, table in raw["fields"].items()},
        attributes={name: _names(table) for name, table in raw["attributes"].items()},
        objects={name: frozenset(table["attributes"]) for name, table in raw["objects"].items()},
        keys={name: frozenset(names) for name, names in raw["keys"].items()},
    )


def differences(find: Callable[[str], Any] | None = None) -> list[str]:
    """What is missing or defaults otherwise, a line each; empty: all that is needed is there.

    `find`: the thing of a dotted name, or an AttributeError or ImportError. None: imports it.
    """
    return [*_missing_names(find or find_name), *_other_defaults(find or find_name)]


def missing(find: Callable[[str], Any] | None = None) -> list[str]:
    """The same, but for defaults: of what is filled all the same, they do not matter."""
    return list(_missing_names(find or find_name))


def find_name(name: str) -> Any:
    """Imports as much of the name as is a module. Raises ImportError, AttributeError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # one of its own dependencies
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(f"no module named {parts[0]}", name=parts[0])


def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Names of what it takes, `self` left out."""
    return frozenset(inspect.signature(function).parameters) - {"self"}


def field_defaults(kind: type) -> Mapping[str, Any]:
    """Fields of a dataclass or of a pydantic model with their defaults; parameters of any other class."""
    if (model_fields := getattr(kind, "model_fields", None)) is not None:
        return {name: info.default for name, info in model_fields.items()}
    if is_dataclass(kind):
        return {each.name: each.default for each in fields(kind)}
    return {name: each.default for name, each in inspect.signature(kind).parameters.items()}


def _missing_names(find: Callable[[str], Any]) -> Iterator[str]:
    known = surface()
    for name, names in known.callables.items():
        if (found := _found(find, name, names.also)) is None:
            yield f"{name} is missing"
        elif not names.takes_kwargs:
            yield from _missing(name, names.needed, parameters(found))
    for name, names in known.fields.items():
        if (found := _found(find, name, names.also)) is None:
            yield f"{name} is missing"
        else:
            yield from _missing(name, names.needed, field_defaults(found))
    for name, names in known.attributes.items():
        if (found := _found(find, name)) is not None:
            yield from _missing(name, names.needed, {each for each in names.needed if hasattr(found, each)})
        elif names.needed:
            yield f"{name} is missing"


def _other_defaults(find: Callable[[str], Any]) -> Iterator[str]:
    for name, names in surface().fields.items():
        if (found := _found(find, name, names.also)) is None:
            continue
        defaults = field_defaults(found)
        for key, value in names.defaults.items():
            if key in defaults and defaults[key] != value:
                yield f"{name}.{key} defaults to {defaults[key]!r}, not to {value!r}"


def _found(find: Callable[[str], Any], name: str, also: str = "") -> Any:
    try:
        return find(name)
    except (ImportError, AttributeError):
        return _found(find, also) if also else None


def _missing(name: str, needed: frozenset[str], there: Any) -> Iterator[str]:
    for each in sorted(needed - set(there)):
        yield f"{name} has no {each}"


def _names(table: Mapping[str, Any]) -> Names:
    needed, optional = frozenset(table["needed"]), frozenset(table.get("optional", ()))
    return Names(needed, optional, table.get("defaults", {}), bool(table.get("takes_kwargs")), table.get("also", ""))
