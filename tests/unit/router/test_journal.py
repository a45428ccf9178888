"""Whatever was drawn and delivered: what is resumed is all of it, and what is replayed is what was not delivered."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch
from weir_router.journal import Journal
from weir_router.streams.token_batch import is_well_formed

N, TOP = 3, 2


@dataclass
class Model:
    """The same, in plain lists: of each output its tokens, their log-probabilities, and how many are delivered."""

    tokens: list[list[int]] = field(default_factory=lambda: [[] for _ in range(N)])
    logprobs: list[list[float]] = field(default_factory=lambda: [[] for _ in range(N)])
    delivered: list[int] = field(default_factory=lambda: [0] * N)

    def left(self) -> dict[int, list[int]]:
        return {i: ids[self.delivered[i] :] for i, ids in enumerate(self.tokens) if ids[self.delivered[i] :]}


def row(logprobs: list[float]) -> RowLogprobs:
    top = range(TOP * len(logprobs))
    return RowLogprobs(
        row=7, logprobs=logprobs, top_count=TOP, top_token_ids=top, top_logprobs=[-float(t) for t in top]
    )


def taken_apart(batch: TokenBatch) -> dict[int, list[int]]:
    found, start = {}, 0
    for output_index, count in zip(batch.output_indexes, batch.token_counts, strict=True):
        found[output_index] = list(batch.token_ids[start : start + count])
        start += count
    return found


_DRAWS = st.tuples(st.integers(0, N - 1), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.just("draw"))
_DELIVERIES = st.tuples(st.integers(0, N - 1), st.integers(0, 4), st.just("deliver"))


@given(st.lists(st.one_of(_DRAWS, _DELIVERIES), max_size=40), st.booleans())
def test_what_is_resumed_and_what_is_replayed(events: list[tuple[int, object, str]], with_logprobs: bool) -> None:
    journal, model = Journal(N, max_tokens=1000), Model()
    for index, what, kind in events:
        if kind == "draw":
            assert isinstance(what, list)
            drawn = [float(len(model.tokens[index]) + i) for i in range(len(what))]
            journal.draw(index, what)
            if with_logprobs:
                journal.draw_logprobs(index, row(drawn))
            model.tokens[index] += what
            model.logprobs[index] += drawn
        else:
            assert isinstance(what, int)
            count = min(what, len(model.tokens[index]) - model.delivered[index])
            journal.deliver(index, count)
            model.delivered[index] += count
    assert journal.num_drawn == sum(map(len, model.tokens))
    assert journal.longest == max(map(len, model.tokens))
    assert {each.output_index: list(each.token_ids) for each in journal.resumed()} == {
        i: ids for i, ids in enumerate(model.tokens) if ids
    }
    assert {each.output_index: list(each.token_ids) for each in journal.opened()} == {
        i: ids[: model.delivered[i]] for i, ids in enumerate(model.tokens) if model.delivered[i]
    }
    batch = journal.undelivered(handle=9)
    assert is_well_formed(batch)
    assert taken_apart(batch) == model.left()
    assert set(batch.handles) <= {9}
    assert list(batch.first_token_indexes) == [model.delivered[i] for i in batch.output_indexes]
    check_logprobs(batch, model, with_logprobs=with_logprobs)


def check_logprobs(batch: TokenBatch, model: Model, *, with_logprobs: bool) -> None:
    assert len(batch.logprobs) == (len(batch.handles) if with_logprobs else 0)
    for entry in batch.logprobs:
        index = batch.output_indexes[entry.row]
        assert list(entry.logprobs) == model.logprobs[index][model.delivered[index] :]
        assert len(entry.top_token_ids) == len(entry.top_logprobs) == TOP * len(entry.logprobs)
        assert [-float(token_id) for token_id in entry.top_token_ids] == list(entry.top_logprobs)


def test_what_is_beyond_the_bound_makes_it_incomplete_and_is_counted_all_the_same() -> None:
    journal = Journal(2, max_tokens=5)
    journal.draw(0, [1, 2, 3])
    journal.draw(1, [4, 5])
    assert journal.complete
    journal.draw(0, [6])
    journal.deliver(0, 4)
    assert (journal.complete, journal.num_drawn, journal.longest) == (False, 6, 0)


def test_log_probabilities_of_a_replica_that_answers_nothing_have_a_bound_of_their_own() -> None:
    journal = Journal(1, max_tokens=10_000)
    for token_id in range(4096):
        journal.draw(0, [token_id])
        journal.draw_logprobs(0, row([-1.0]))
        journal.deliver(0, 1)
    assert journal.complete, "what is delivered is forgotten"
    for token_id in range(4097):
        journal.draw(0, [token_id])
        journal.draw_logprobs(0, row([-1.0]))
    assert not journal.complete


def test_how_outputs_ended_is_kept() -> None:
    journal = Journal(2, max_tokens=5)
    ended = ExecutorOutputFinished(output_index=1, finish_reason=FinishReason.FINISH_REASON_LENGTH)
    journal.finish(ended)
    assert journal.finishes == {1: ended}
