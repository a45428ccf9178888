"""The rest of a stream, from any token of each output on. Pure.

    a log     [ t0 t1 "the " ][ t2 "we" ][ t3 t4 "ir" ]
    wanted                      ▲ next_token 2, text_bytes 4
    the rest                  [ t2 "we" ][ t3 t4 "ir" ]

Tokens and text are cut apart, each where its own count says. A stream that another router went on with may have its
deltas cut elsewhere than those that the client has seen; the counts are right for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from weir.inference.v1.stream_pb2 import Delta
from weir.router.v1.router_pb2 import ResumeRequest
from weir_chassis.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Place:
    """How much of an output there is. `text_bytes`: None, as the deltas say that brought these tokens."""

    next_token: int
    text_bytes: int | None


Places = Mapping[int, Place]  # by output index


def places_of(request: ResumeRequest) -> Places:
    return {
        each.output_index: Place(each.first_token_index, each.text_bytes if each.HasField("text_bytes") else None)
        for each in request.next
    }


class Cut:
    """Goes through an output's deltas in their order, and leaves out what comes before the place that is wanted."""

    def __init__(self, wanted: Places):
        self._wanted = dict(wanted)
        # Of each output: how much text it has gone through, and the token that comes next for the reader.
        self._text_bytes: Counter[int] = Counter()
        self._next_tokens = Counter({index: place.next_token for index, place in wanted.items()})

    def skip(self, beginnings: Places) -> bool:
        """It will not be given the deltas of these beginnings that it has not gone through. False: some are wanted."""
        for index, place in beginnings.items():
            assert place.text_bytes is not None
            self._text_bytes[index] = max(self._text_bytes[index], place.text_bytes)
        return all(self._next_tokens[index] >= place.next_token for index, place in beginnings.items())

    def rest(self, delta: Delta) -> Delta | None:
        """What is wanted of it; None: nothing. Raises InvalidArgument for a place within a character."""
        index = delta.output_index
        place = self._wanted.get(index)
        end = delta.first_token_index + len(delta.token_ids)
        self._next_tokens[index] = max(end, self._next_tokens[index])
        if place is None:
            return delta
        had_tokens = min(max(place.next_token - delta.first_token_index, 0), len(delta.token_ids))
        text = delta.text.encode()
        had_text = self._had_text(delta, place, len(text))
        self._pass(delta, place, len(text))
        if had_tokens == 0 and had_text == 0:
            return delta
        if had_tokens == len(delta.token_ids) and had_text == len(text):
            return None
        return Delta(
            output_index=delta.output_index,
            first_token_index=delta.first_token_index + had_tokens,
            token_ids=delta.token_ids[had_tokens:],
            text=_from(text, had_text),
            logprobs=delta.logprobs[had_tokens:],
        )

    def _had_text(self, delta: Delta, place: Place, size: int) -> int:
        if place.text_bytes is None:
            return size if delta.first_token_index < place.next_token else 0
        return min(max(place.text_bytes - self._text_bytes[delta.output_index], 0), size)

    def _pass(self, delta: Delta, place: Place, size: int) -> None:
        index = delta.output_index
        self._text_bytes[index] += size
        tokens_passed = delta.first_token_index + len(delta.token_ids) >= place.next_token
        text_passed = place.text_bytes is None or self._text_bytes[index] >= place.text_bytes
        # By tokens alone, a delta without tokens may still come whose text is not wanted.
        if tokens_passed and text_passed and len(delta.token_ids) > 0:
            del self._wanted[index]


def _from(text: bytes, start: int) -> str:
    try:
        return text[start:].decode()
    except UnicodeDecodeError:
        raise InvalidArgument("next.text_bytes", "is within a character") from None
