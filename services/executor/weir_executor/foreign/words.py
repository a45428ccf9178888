"""What another program says of an error, cut to what may be shown."""

from __future__ import annotations

from typing import Final

# A text may hold a part of the prompt beyond its first line.
_MAX_CHARS: Final = 200


def first_line(said: str) -> str:
    lines = said.splitlines()
    return (lines[0] if lines else "")[:_MAX_CHARS]
