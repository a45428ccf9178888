"""Results that their outputs have left because the blocks did not come, until the engine's last word on them.

To abort one while its blocks are on the way is not safe in every version, so that it is aborted by its first word. It
keeps its place until then, or until a time limit. Used on the engine's loop only.
"""

from __future__ import annotations

from typing import Any


class Strays:
    def __init__(self) -> None:
        self._aborted: dict[int, bool] = {}  # by the result's id; whoever follows it holds it

    def __len__(self) -> int:
        return len(self._aborted)

    def __contains__(self, result: Any) -> bool:
        return id(result) in self._aborted

    def add(self, result: Any) -> None:
        self._aborted[id(result)] = False

    def abort(self, result: Any) -> None:
        if not self._aborted[id(result)]:
            self._aborted[id(result)] = True
            result.abort()

    def remove(self, result: Any) -> bool:
        """Whether it was here."""
        return self._aborted.pop(id(result), None) is not None

    def clear(self) -> None:
        self._aborted.clear()
