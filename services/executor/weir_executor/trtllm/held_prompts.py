"""Prompts that were computed for other engines, and wait in this engine's blocks. Used on the engine's loop only.

    reserve ─▶ (context_only) ─▶ hold ─▶ release
       └────── it failed, or nobody wants it ──┘

The engine frees them by itself, when they have been fetched or its time limit for that is over. A taker that says it is
done, and a caller that wants no more, are passed on as an abort: versions that can cancel a transfer free the blocks at
once, others at their time limit, which is set to our lease's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Held:
    num_blocks: int  # of all outputs together
    results: Sequence[Any] | None = None  # the engine's, one for each output; None: they are being computed


class HeldPrompts:
    """By key of the request that left them. At most half of `total_blocks` are: the rest is for those who compute."""

    def __init__(self, total_blocks: int) -> None:
        self._limit = total_blocks // 2
        self._by_key: dict[int, _Held] = {}

    @property
    def num_blocks(self) -> int:
        return sum(held.num_blocks for held in self._by_key.values() if held.results is not None)

    def reserve(self, key: int, num_blocks: int) -> bool:
        """Whether there is room for so many more. Those of one key are reserved once."""
        if key in self._by_key:
            return True
        if sum(held.num_blocks for held in self._by_key.values()) + num_blocks > self._limit:
            return False
        self._by_key[key] = _Held(num_blocks)
        return True

    def hold(self, key: int, results: Sequence[Any]) -> None:
        self._by_key[key].results = results

    def release(self, key: int) -> bool:
        """Whether it was reserved or held."""
        held = self._by_key.pop(key, None)
        for result in held.results or () if held is not None else ():
            result.abort()
        return held is not None
