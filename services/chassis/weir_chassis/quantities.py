"""Sizes and durations as people write them: `4GiB`, `6h`. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

_SIZE_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_SIZE_BYTES: Final = 1 << 60
_MAX_SECONDS: Final = 10 * 365 * 86_400.0
FOR_EVER: Final = "never"


def parse_size(value: object) -> object:
    """Bytes of `4GiB`; a number is handed on."""
    if not isinstance(value, str):
        return _number(value)
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]iB|)", value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no size such as 512MiB or 4GiB")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def parse_duration(value: object) -> object:
    """Seconds of `6h` or `1h30m`; None of `never`; a number is handed on."""
    if not isinstance(value, str):
        return _number(value)
    if value == FOR_EVER:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f"{value!r} is no duration such as 30m or 6h, nor {FOR_EVER!r}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def size_text(size_bytes: int) -> str:
    """As `parse_size` reads it, in the largest unit that is exact."""
    for unit, factor in reversed(_SIZE_UNITS.items()):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def duration_text(seconds: float | None) -> str:
    """As `parse_duration` reads it, in the largest unit that is exact."""
    if seconds is None:
        return FOR_EVER
    for unit, factor in reversed(_SECONDS.items()):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds // factor:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0") + "s"


def _number(value: object) -> object:
    if isinstance(value, bool):  # which Python counts among the numbers
        raise ValueError("true and false are no number")
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=_MAX_SIZE_BYTES)]
Lifetime = Annotated[
    Annotated[float, Field(gt=0, le=_MAX_SECONDS)] | None,
    BeforeValidator(parse_duration),
]
