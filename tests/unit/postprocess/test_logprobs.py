from __future__ import annotations

import pytest

from unit.postprocess.vocabularies import byte_level, llama
from weir.inference.v1.output_pb2 import RowLogprobs
from weir.inference.v1.stream_pb2 import TokenLogprob, TopLogprob
from weir_chassis.errors import InvalidArgument
from weir_postprocess.logprobs import token_logprobs


def test_each_token_has_its_own_bytes() -> None:
    family = byte_level()
    ids = family.ids("好")
    row = RowLogprobs(logprobs=[-0.5] * len(ids))
    entries = token_logprobs(family.vocabulary, ids, row, "row")
    assert [entry.token_id for entry in entries] == ids
    assert b"".join(entry.token for entry in entries) == "好".encode()
    assert {entry.logprob for entry in entries} == {-0.5}


def test_the_most_likely_come_best_first() -> None:
    vocabulary = llama().vocabulary
    a, b = llama().byte_ids(b"\xe2\x82")
    row = RowLogprobs(
        logprobs=[-1, -2], top_count=2, top_token_ids=[a, b, b, a], top_logprobs=[-1, -3, -0.5, float("-inf")]
    )
    first, second = token_logprobs(vocabulary, [a, a], row, "row")
    assert first == TokenLogprob(
        token_id=a,
        token=b"\xe2",
        logprob=-1,
        top=[TopLogprob(token_id=a, token=b"\xe2", logprob=-1), TopLogprob(token_id=b, token=b"\x82", logprob=-3)],
    )
    assert [(top.token_id, top.logprob) for top in second.top] == [(b, -0.5), (a, float("-inf"))]


def test_a_token_that_the_tokenizer_does_not_know_has_no_bytes() -> None:
    padding = len(byte_level().vocabulary)
    row = RowLogprobs(logprobs=[-1], top_count=1, top_token_ids=[padding + 1], top_logprobs=[-0.5])
    (entry,) = token_logprobs(byte_level().vocabulary, [padding], row, "row")
    assert (entry.token_id, entry.token, entry.top[0].token_id, entry.top[0].token) == (padding, b"", padding + 1, b"")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (RowLogprobs(logprobs=[-1]), "row.logprobs"),
        (RowLogprobs(logprobs=[-1, -1, -1]), "row.logprobs"),
        (RowLogprobs(logprobs=[-1, -1], top_count=1, top_token_ids=[0], top_logprobs=[-1]), "row.top_token_ids"),
        (RowLogprobs(logprobs=[-1, -1], top_count=1, top_token_ids=[0, 0], top_logprobs=[-1]), "row.top_token_ids"),
        (RowLogprobs(logprobs=[-1, -1], top_token_ids=[0]), "row.top_token_ids"),
        (RowLogprobs(logprobs=[0, 0], top_count=1, top_token_ids=[0, 2**31], top_logprobs=[0, 0]), "row.top_token_ids"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(row: RowLogprobs, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        token_logprobs(byte_level().vocabulary, [0, 1], row, field="row")
    assert refused.value.field == field
