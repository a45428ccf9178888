"""Drafts by prompt lookup: what followed the last few tokens when they stood here before. Pure.

    … the weir holds the water back, and the weir holds | the water back
          └──────── followed by ────────┘      └─ match ─┘

The longest match wins, and of equally long ones the latest. What is copied may run into the copy itself, so that a
pattern that has begun to repeat goes on repeating. Places are found as LZ77 finds them (RFC 1951, section 4): by the
last `_KEY` tokens, each place linked to the one before it with the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from weir_executor.paged.batch import Batch
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.speculation.proposer import Wish

_KEY = 2  # tokens that must match at least: after a single one, nearly anything may follow
_MAX_MATCH = 16  # a longer match says no more
_MAX_CANDIDATES = 16  # places that are looked at per guess: a frequent pair may have stood in thousands
# Of a long prompt, the last so many tokens are remembered, at about 100 bytes each; then all that is generated.
_WINDOW = 16_384


class NgramIndex:
    """Where the tokens of one sequence stood. The sequence may only grow."""

    __slots__ = ("_end", "_latest", "_previous", "_start")

    def __init__(self) -> None:
        self._start = self._end = 0  # the places that are remembered: after token `_start`, up to after token `_end`
        self._latest: dict[tuple[int, ...], int] = {}  # by key: the latest place after it
        self._previous: list[int] = []  # by place: the one before with the same key, or -1

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `token_ids`, the same sequence as ever, perhaps longer."""
        place = self._longest_match(token_ids, self._extend(token_ids))
        return _copy(token_ids, place, most) if place is not None else []

    def _extend(self, token_ids: Sequence[int]) -> int:
        """Remember all places but the very end. Returns the latest place before with the key of the end, or -1."""
        if not self._end:
            self._start = self._end = max(0, len(token_ids) - _WINDOW)
        for place in range(self._end, len(token_ids)):
            key = tuple(token_ids[max(self._start, place - _KEY) : place])
            self._previous.append(self._latest.get(key, -1))
            self._latest[key] = place
        self._end = len(token_ids)
        return self._latest.get(tuple(token_ids[-_KEY:]), -1)

    def _longest_match(self, token_ids: Sequence[int], candidate: int) -> int | None:
        best, best_length = None, _KEY - 1
        for _ in range(_MAX_CANDIDATES):
            if candidate < 0 or best_length == _MAX_MATCH:
                break
            length = _match_length(token_ids, candidate)
            if length > best_length:
                best, best_length = candidate, length
            candidate = self._previous[candidate - self._start]
        return best


class NgramProposer:
    """See `Proposer`. An index lives as long as its sequence."""

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[LiveSequence, NgramIndex] = WeakKeyDictionary()

    def note(self, batch: Batch) -> None:
        """Tokens are all it looks at."""

    def propose(self, wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        return [self._index(wish.row.sequence).guess(wish.row.sequence.token_ids, wish.most) for wish in wishes]

    def seconds_per_draft(self) -> float | None:
        return 0.0

    def _index(self, sequence: LiveSequence) -> NgramIndex:
        known = self._indexes.get(sequence)
        return self._indexes.setdefault(sequence, NgramIndex()) if known is None else known


def _match_length(token_ids: Sequence[int], place: int) -> int:
    """How many tokens before `place` are those before the end."""
    most, end = min(place, _MAX_MATCH), len(token_ids)
    return next((i for i in range(most) if token_ids[place - 1 - i] != token_ids[end - 1 - i]), most)


def _copy(token_ids: Sequence[int], place: int, count: int) -> list[int]:
    """`count` tokens from `place` on; beyond the end, from the copy itself."""
    copied = list(token_ids[place : place + count])
    while len(copied) < count:
        copied.append(copied[len(copied) - (len(token_ids) - place)])
    return copied
