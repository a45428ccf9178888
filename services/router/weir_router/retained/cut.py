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
    tool_call_bytes: int = 0


Places = Mapping[int, Place]  # by output index


def places_of(request: ResumeRequest) -> Places:
    return {
        each.output_index: Place(
            each.first_token_index, each.text_bytes if each.HasField("text_bytes") else None, each.tool_call_bytes
        )
        for each in request.next
    }


class Cut:
    """Goes through an output's deltas in their order, and leaves out what comes before the place that is wanted."""

    def __init__(self, wanted: Places):
        self._wanted = dict(wanted)
        # Of each output: how much text and of tool calls it has gone through, and the token that comes next.
        self._text_bytes: Counter[int] = Counter()
        self._call_bytes: Counter[int] = Counter()
        self._next_tokens = Counter({index: place.next_token for index, place in wanted.items()})
        self._had_bytes = Counter({index: place.text_bytes or 0 for index, place in wanted.items()})

    def skip(self, beginnings: Places) -> bool:
        """It will not be given the deltas of these beginnings that it has not gone through. False: some are wanted."""
        has_all = all(self._has(index, place) for index, place in beginnings.items())
        for index, place in beginnings.items():
            self._text_bytes[index] = max(self._text_bytes[index], place.text_bytes or 0)
        return has_all

    def _has(self, index: int, beginning: Place) -> bool:
        if beginning.next_token:
            return self._next_tokens[index] >= beginning.next_token
        # Of a worker that tells no tokens.
        return max(self._text_bytes[index], self._had_bytes[index]) >= (beginning.text_bytes or 0)

    def rest(self, delta: Delta) -> Delta | None:
        """What is wanted of it; None: nothing. Raises InvalidArgument for a place within a character."""
        index = delta.output_index
        place = self._wanted.get(index)
        end = delta.first_token_index + len(delta.token_ids)
        self._next_tokens[index] = max(end, self._next_tokens[index])
        if place is None:
            return delta
        text = delta.text.encode()
        had_tokens = min(max(place.next_token - delta.first_token_index, 0), len(delta.token_ids))
        had_text, had_calls = self._had_text(delta, place, len(text)), self._had_calls(delta, place)
        self._pass(delta, place, len(text))
        if (had_tokens, had_text, had_calls) == (0, 0, 0):
            return delta
        if (had_tokens, had_text, had_calls) == (len(delta.token_ids), len(text), len(delta.tool_calls)):
            return None
        return Delta(
            output_index=index,
            first_token_index=delta.first_token_index + had_tokens,
            token_ids=delta.token_ids[had_tokens:],
            text=_from(text, had_text),
            logprobs=delta.logprobs[had_tokens:],
            tool_calls=delta.tool_calls[had_calls:],
        )

    def _had_text(self, delta: Delta, place: Place, size: int) -> int:
        if place.text_bytes is None:
            return size if delta.first_token_index < place.next_token else 0
        return min(max(place.text_bytes - self._text_bytes[delta.output_index], 0), size)

    def _had_calls(self, delta: Delta, place: Place) -> int:
        """All or none: whoever tells tool calls apart says each delta once."""
        start = self._call_bytes[delta.output_index]
        had = start < place.tool_call_bytes and start + _call_size(delta) <= place.tool_call_bytes
        return len(delta.tool_calls) if had else 0

    def _pass(self, delta: Delta, place: Place, size: int) -> None:
        index = delta.output_index
        self._text_bytes[index] += size
        self._call_bytes[index] += _call_size(delta)
        tokens_passed = delta.first_token_index + len(delta.token_ids) > place.next_token
        text_passed = place.text_bytes is None or self._text_bytes[index] > place.text_bytes
        # One more than is wanted: what comes without tokens or text counts to what came before it.
        if tokens_passed and text_passed and self._call_bytes[index] >= place.tool_call_bytes:
            del self._wanted[index]


def _call_size(delta: Delta) -> int:
    return sum(len(call.arguments_json.encode()) for call in delta.tool_calls)


def _from(text: bytes, start: int) -> str:
    try:
        return text[start:].decode()
    except UnicodeDecodeError:
        raise InvalidArgument("next.text_bytes", "is within a character") from None
