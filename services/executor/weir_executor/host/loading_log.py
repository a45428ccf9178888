"""How far an executor is with its weights, from the lines that it logs meanwhile. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loaded:
    """Bytes of weights that were read, of so many."""

    done: int = 0
    total: int = 0


def newest(lines: Iterable[str]) -> Loaded | None:
    """What the last of these lines that tells says; None: none does. Other lines may be anything."""
    found = None
    for line in lines:
        if "model_loading" not in line:
            continue
        try:
            told = json.loads(line)
            found = Loaded(int(told["loaded_bytes"]), int(told["total_bytes"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


class LogTail:
    """Reads what was added to a log since it was read last."""

    def __init__(self, read_from: int = 0) -> None:
        self._offset, self._rest = read_from, b""

    @property
    def offset(self) -> int:
        """Where the next bytes are expected."""
        return self._offset

    def lines(self, added: bytes) -> list[str]:
        """The lines that these bytes, from `offset`, bring to their end."""
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        return [line.decode(errors="replace") for line in whole]
