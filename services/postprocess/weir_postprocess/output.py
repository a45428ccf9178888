"""One output of a request: token ids in; tokens out, each with the text that it completes.

    text held       … t h e   E N          the tokens whose text ends before what may be a stop string go out,
    tokens held       [the]  [ EN]         with exactly their text; a cut never falls inside a token
                          ▲
                          cut

A token is held while its last character is not whole, and while any of its text may belong to a stop string. When a
stop string is complete, every token up to the one that completed it goes out with the text before the stop string (or
up to its end, when that is wanted), so that the tokens a client counts are those that were generated for it; later
tokens are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1.stream_pb2 import TokenLogprob
from weir_postprocess.detokenizer import Detokenizer
from weir_postprocess.stop import START, State, StopStrings
from weir_postprocess.vocabulary import Vocabulary

# Stands for the end of a token whose last character is not whole: no cut can fall behind it.
_NOT_WHOLE: Final = -1


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What a request asks of each of its outputs."""

    vocabulary: Vocabulary
    stops: StopStrings | None = None
    include_stop_in_output: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Released:
    """Tokens that go out, with the text that they complete. `logprobs` has one for each token, or none at all."""

    first_token_index: int
    token_ids: Sequence[int]
    text: str
    logprobs: Sequence[TokenLogprob]


class Output:
    """Takes tokens in (`add`, `end`), and gives out what is certain (`take`)."""

    __slots__ = (
        "_detokenizer",
        "_ended",
        "_ends",
        "_logprobs",
        "_options",
        "_released_tokens",
        "_state",
        "_text",
        "_token_ids",
        "stop",
    )

    def __init__(self, options: OutputOptions, resumed: Sequence[int] = ()):
        """`resumed` were given to the client already, with their text. They are replayed in silence, so that a
        character or a stop string that they begin is completed by the tokens that follow."""
        self._options = options
        self._detokenizer = Detokenizer(options.vocabulary, skip_special_tokens=options.skip_special_tokens)
        self._state: State = START
        text = self._detokenizer.replay(resumed)
        if options.stops is not None:
            self._state = options.stops.skip(text)
        self._released_tokens = len(resumed)
        # What is held: tokens, where in the held text each of them ends, and their log-probabilities.
        self._token_ids: list[int] = []
        self._ends: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text = ""
        self._ended = False
        # The stop string that ended this output.
        self.stop: str | None = None

    @property
    def ended(self) -> bool:
        """Nothing more is taken in; `take` gives out the rest."""
        return self._ended

    @property
    def next_token_index(self) -> int:
        """The index of the next token to come in."""
        return self._released_tokens + len(self._token_ids)

    def add(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = (), *, textless_last: bool = False
    ) -> None:
        """Takes in the next tokens. `textless_last`: the last is counted but has no text.

        Tokens behind the one that completes a stop string are dropped.
        """
        assert not self._ended, "an ended output takes nothing in"
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self._hold(token_id, "" if textless_last and i == last else self._detokenizer.add(token_id))
            if self._ended:
                last = i
                break
        self._logprobs += logprobs[: last + 1]

    def end(self) -> None:
        """No token follows: bytes that are not whole become U+FFFD, and a stop string that was begun is only text."""
        if self._ended:
            return
        self._ended = True
        if text := self._detokenizer.flush():
            self._append(text)

    def take(self) -> Released | None:
        """What can go out now and has not yet; once ended, everything."""
        tokens, characters = self._cut()
        if not tokens and not characters:
            return None
        released = Released(
            self._released_tokens, self._token_ids[:tokens], self._text[:characters], self._logprobs[:tokens]
        )
        self._released_tokens += tokens
        del self._token_ids[:tokens], self._logprobs[:tokens]
        self._ends = [end if end == _NOT_WHOLE else end - characters for end in self._ends[tokens:]]
        self._text = self._text[characters:]
        return released

    def _hold(self, token_id: int, text: str) -> None:
        self._token_ids.append(token_id)
        self._append(text)
        self._ends.append(len(self._text) if self._detokenizer.whole else _NOT_WHOLE)

    def _append(self, text: str) -> None:
        """Adds to the held text, and ends the output when that completes a stop string."""
        stops, before = self._options.stops, len(self._text)
        self._text += text
        if stops is None or not text:
            return
        self._state, match = stops.scan(self._state, text)
        if match is None:
            return
        end = before + match.end
        # A stop string that a resumed output had begun reaches back into text that is out already, and stays out.
        start = max(0, end - len(match.stop))
        self._text = self._text[: end if self._options.include_stop_in_output else start]
        self.stop = match.stop
        self._ended = True

    def _cut(self) -> tuple[int, int]:
        """How many of the held tokens go out, and how many characters with them."""
        if self._ended:
            return len(self._token_ids), len(self._text)
        certain = len(self._text) - (self._options.stops.held_back(self._state) if self._options.stops else 0)
        for i in range(len(self._ends) - 1, -1, -1):
            if _NOT_WHOLE < self._ends[i] <= certain:
                return i + 1, self._ends[i]
        return 0, 0
