"""How many tokens of prompts a step may compute beside its decodes, so that these come at the rate wanted. Pure.

Additive increase, multiplicative decrease: a step that took longer than the target shrinks the chunk in proportion,
one that was well within it, and full, lets it grow by a little. It finds the device's speed and follows it as contexts
grow; no model of the cost is needed.
"""

from __future__ import annotations

# The chunk is cut to a quarter at most: one slow step (a page fault, a neighbour) is no reason to start from nothing.
_MOST_DECREASE = 0.25
# It grows by this part of the limit, and only below this part of the target, so that it settles instead of swinging.
_INCREASE, _WELL_WITHIN = 1 / 32, 0.9


class ChunkSize:
    """`tokens` is the size for the next step."""

    def __init__(self, target_seconds: float | None, *, least: int, most: int) -> None:
        """`target_seconds` of a step that decodes; None: no target, and always `most`. Prompts always advance by
        `least`, whatever the target: it may be out of the device's reach."""
        assert 0 < least <= most, (least, most)
        self._target_seconds, self._least, self._most = target_seconds, least, most
        self.tokens = most

    def observe(self, seconds: float, *, prefill_tokens: int, decode_tokens: int) -> None:
        """A step took so long. One that only decodes or only prefills says nothing about the chunk."""
        if self._target_seconds is None or not prefill_tokens or not decode_tokens:
            return
        if seconds > self._target_seconds:
            shrunk = int(prefill_tokens * max(_MOST_DECREASE, self._target_seconds / seconds))
            self.tokens = max(self._least, min(self.tokens, shrunk))
        elif seconds < self._target_seconds * _WELL_WITHIN and prefill_tokens >= self.tokens:
            self.tokens = min(self._most, self.tokens + max(1, int(self._most * _INCREASE)))
