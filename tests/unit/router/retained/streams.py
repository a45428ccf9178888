"""Streams to keep and to read: what an output says, cut into deltas in any way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from weir.inference.v1.stream_pb2 import Accepted, Delta, TokenLogprob
from weir_router.delivery import Event
from weir_router.retained.cut import Place

_TEXTS = ("the ", "wéir", "", "a", "龍", "no")


def text_of(token_id: int) -> str:
    """Each token has its own text; some have none."""
    return _TEXTS[token_id % len(_TEXTS)]


def delta(output_index: int, first: int, token_ids: Sequence[int]) -> Delta:
    return Delta(
        output_index=output_index,
        first_token_index=first,
        token_ids=token_ids,
        text="".join(map(text_of, token_ids)),
        logprobs=[TokenLogprob(token_id=token_id, logprob=-1.0) for token_id in token_ids],
    )


def place(token_ids: Sequence[int]) -> Place:
    """That of a client which has these tokens of an output."""
    return Place(len(token_ids), len("".join(map(text_of, token_ids)).encode()))


def said(events: Iterable[Event], had: dict[int, list[int]] | None = None) -> dict[int, tuple[list[int], str]]:
    """Tokens and text by output, after those that the client had. Fails for a gap or a repetition."""
    tokens = {index: list(ids) for index, ids in (had or {}).items()}
    texts = {index: "".join(map(text_of, ids)) for index, ids in tokens.items()}
    for event in events:
        if isinstance(event, Delta):
            mine = tokens.setdefault(event.output_index, [])
            assert event.first_token_index == len(mine)
            mine.extend(event.token_ids)
            texts[event.output_index] = texts.get(event.output_index, "") + event.text
            assert [each.token_id for each in event.logprobs] == list(event.token_ids)
    return {index: (ids, texts[index]) for index, ids in tokens.items() if ids}


@st.composite
def streams(draw: st.DrawFn, max_outputs: int = 3, max_tokens: int = 12) -> tuple[dict[int, list[int]], list[Event]]:
    """Each output's tokens, and the events of a stream that says them, cut and interleaved in some way."""
    outputs = {
        index: draw(st.lists(st.integers(0, 50), max_size=max_tokens))
        for index in range(draw(st.integers(1, max_outputs)))
    }
    left, events = {index: len(ids) for index, ids in outputs.items() if ids}, [Accepted(request_id="r", attempt=1)]
    while left:
        index = draw(st.sampled_from(sorted(left)))
        first = len(outputs[index]) - left[index]
        count = draw(st.integers(1, left[index]))
        events.append(delta(index, first, outputs[index][first : first + count]))  # type: ignore[arg-type]
        left[index] -= count
        if not left[index]:
            del left[index]
    return outputs, events  # type: ignore[return-value]
