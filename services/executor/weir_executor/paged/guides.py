"""Outputs that follow a guide: where they begin, and what may be drawn for them at each place of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weir_chassis.errors import InvalidArgument, WeirError
from weir_executor.guided.guide import CompiledGuide, GuideState
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.request import GenerationRequest


def start_guides(request: GenerationRequest, stop_token_ids: frozenset[int]) -> list[GuideState]:
    """Where each output stands after the tokens it resumes with; none for a request without a guide.

    Raises InvalidArgument for tokens that the guide does not allow.
    """
    if request.guide is None:
        return []
    resumed = (request.resumed.get(index, ()) for index in range(request.n))
    return [_replay(request.guide, token_ids, stop_token_ids) for token_ids in resumed]


def _replay(guide: CompiledGuide, token_ids: Sequence[int], stop_token_ids: frozenset[int]) -> GuideState:
    state = guide.start()
    for place, token_id in enumerate(token_ids):
        if token_id not in stop_token_ids and not state.advance(token_id):
            raise InvalidArgument("resumed", f"{guide.guide.field} does not allow token {place} of an output")
    return state


def allowed_drafts(sequence: LiveSequence, draft_token_ids: Sequence[int]) -> Sequence[int]:
    """The drafts up to the first that the sequence's guide does not take as text: the others would not stand."""
    state, taken = sequence.guide, 0
    if state is None:
        return draft_token_ids
    while taken < len(draft_token_ids) and state.advance(draft_token_ids[taken]):
        taken += 1
    state.rollback(taken)
    return draft_token_ids[:taken]


def allowed_by_guides(rows: Sequence[Scheduled]) -> tuple[dict[int, list[Any]], dict[int, WeirError]]:
    """Of the rows that follow a guide, by their index: what may be drawn, or what is wrong with it.

    A row has one set of `guided/bitmask.py` for each place that it draws for: after its sequence's own tokens, and
    after each of its drafts. What comes after a draft that the guide does not allow, or with which the output is over,
    is never drawn: such places have none.
    """
    allowed: dict[int, list[Any]] = {}
    errors: dict[int, WeirError] = {}
    for index, row in enumerate(rows):
        if row.samples and row.sequence.guide is not None:
            try:
                allowed[index] = _allowed(row, row.sequence.guide)
            except InvalidArgument as error:
                errors[index] = error
    return allowed, errors


def _allowed(row: Scheduled, state: GuideState) -> list[Any]:
    sequence = row.sequence
    if state.is_slow:
        raise _wrong(row, "takes too long for each token: is it ambiguous?")
    if not state.allows_text and not state.allows_end:
        raise _wrong(row, f"a dead end after {sequence.num_generated} tokens: no token goes on as it wants")
    places = [_allowed_after(row, state, 0)]
    if not places[0].any():
        raise _wrong(row, f"allows only an end after {sequence.num_generated} tokens, which are less than min_tokens")
    taken = 0
    for token_id in row.draft_token_ids:
        if token_id in sequence.live.stop_token_ids or not state.advance(token_id):
            break
        taken += 1
        if not state.allows_text:
            break
        places.append(_allowed_after(row, state, taken))
    state.rollback(taken)
    return places


def _allowed_after(row: Scheduled, state: GuideState, num_drafts: int) -> Any:
    live = row.sequence.live
    may_end = row.sequence.num_generated + num_drafts >= live.request.min_tokens
    return state.allowed(live.stop_token_ids, may_end=may_end)


def _wrong(row: Scheduled, problem: str) -> InvalidArgument:
    guide = row.sequence.live.request.guide
    assert guide is not None, row
    return InvalidArgument(guide.guide.field, problem)
