"""Stop strings, found across any chunking of the text.

An Aho-Corasick automaton over characters. Its state after a character is the longest end of the text so far that begins
some stop string; the length of that end is exactly how much text must be held back, because any of it may turn out to
be a stop string and nothing before it can. So one step per character both finds the stop and says what may go out:

    stops "END", "NO"        text    T   H   E   N   O
                             state   -   -   E   EN  stop "NO"
                             held    0   0   1   2

The match that ends first wins; of those that end together, the longest, so that no beginning of a stop string is left
in the text. That depends on the text alone, never on how it came.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from weir_chassis.errors import InvalidArgument

# The contract's. The automaton has a node for each character, so 16 KiB of stop strings cost 16,384 nodes at most.
MAX_STOPS: Final = 16
MAX_STOP_BYTES: Final = 1024
# Agents send the same stop strings with each request. An automaton takes about 20 bytes per character, so the cache is
# bounded by 64 times 320 KiB, and is some KiB in practice.
_CACHED_AUTOMATA: Final = 64

State = int
START: Final[State] = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The text just given, up to `end`, completes `stop`, which may have begun in text given earlier."""

    end: int
    stop: str


class StopStrings:
    """The automaton of one request's stop strings. Immutable; its outputs share it and each keeps its own state.

    States are numbered along each stop string as it is inserted, so the first way on from a state leads to the next
    number, and only where a stop string leaves another's path is there an entry in `_branches`: at most one for each.
    """

    __slots__ = ("_ahead", "_branches", "_depth", "_fallback", "_match", "longest")

    def __init__(self, stops: Sequence[str]):
        """Takes about a microsecond per character. `stops` are checked already (`check_stops`)."""
        assert stops, "without stop strings there is nothing to find"
        assert all(stops), "an empty stop string matches everywhere"
        # The character that leads from state i to state i + 1.
        self._ahead: list[str] = [""]
        self._branches: dict[tuple[State, str], State] = {}
        self._depth = array("H", [0])
        self._match: list[str] = [""]
        for stop in stops:
            self._insert(stop)
        self._fallback = self._link()
        self.longest = max(self._depth)

    def scan(self, state: State, text: str) -> tuple[State, Match | None]:
        """The state after `text`, or after the match in it that ends first."""
        for i, character in enumerate(text):
            state = self._step(state, character)
            if self._match[state]:
                return state, Match(i + 1, self._match[state])
        return state, None

    def skip(self, text: str) -> State:
        """The state after `text` that is out already: stop strings inside it no longer count."""
        state = START
        for character in text[-self.longest :]:
            state = self._step(state, character)
        return state

    def held_back(self, state: State) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return self._depth[state]

    def _step(self, state: State, character: str) -> State:
        while True:
            if self._ahead[state] == character:
                return state + 1
            branch = self._branches.get((state, character))
            if branch is not None:
                return branch
            if not state:
                return START
            state = self._fallback[state]

    def _insert(self, stop: str) -> None:
        state = START
        for character in stop:
            child = self._child(state, character)
            state = self._add_child(state, character) if child is None else child
        self._match[state] = stop

    def _child(self, state: State, character: str) -> State | None:
        return state + 1 if self._ahead[state] == character else self._branches.get((state, character))

    def _add_child(self, state: State, character: str) -> State:
        child = len(self._ahead)
        if child == state + 1:
            self._ahead[state] = character
        else:
            self._branches[state, character] = child
        self._ahead.append("")
        self._depth.append(self._depth[state] + 1)
        self._match.append("")
        return child

    def _link(self) -> array[int]:
        """For each state the longest shorter end of its text that is a state too. Breadth first, so that those of all
        shorter texts are known."""
        self._fallback = fallback = array("H", bytes(2 * len(self._ahead)))
        parents = {child: (state, character) for (state, character), child in self._branches.items()}
        for child in sorted(range(1, len(self._ahead)), key=self._depth.__getitem__):
            state, character = parents.get(child) or (child - 1, self._ahead[child - 1])
            if state:
                fallback[child] = self._step(fallback[state], character)
            # Its own stop string is the longest that ends here; else one that its shorter ends complete.
            self._match[child] = self._match[child] or self._match[fallback[child]]
        return fallback


def check_stops(stops: Sequence[str]) -> None:
    """Raises InvalidArgument when there are too many, or one is empty or too long."""
    if len(stops) > MAX_STOPS:
        raise InvalidArgument("stop", f"{len(stops)} stop strings, the limit is {MAX_STOPS}")
    for i, stop in enumerate(stops):
        if not 1 <= (size := len(stop.encode())) <= MAX_STOP_BYTES:
            raise InvalidArgument(f"stop[{i}]", f"{size} bytes; it takes 1 to {MAX_STOP_BYTES}")


@lru_cache(maxsize=_CACHED_AUTOMATA)
def stop_strings(stops: tuple[str, ...]) -> StopStrings:
    return StopStrings(stops)
