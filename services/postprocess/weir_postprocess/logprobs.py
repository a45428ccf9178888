"""Log-probabilities in the reply's form: each token with its own bytes."""

from __future__ import annotations

from collections.abc import Sequence

from weir.inference.v1.output_pb2 import RowLogprobs
from weir.inference.v1.stream_pb2 import TokenLogprob, TopLogprob
from weir_chassis.errors import InvalidArgument
from weir_postprocess.vocabulary import Vocabulary, check_ids


def token_logprobs(
    vocabulary: Vocabulary, token_ids: Sequence[int], logprobs: RowLogprobs, field: str
) -> list[TokenLogprob]:
    """One for each of `token_ids`; an id that the tokenizer does not know has no bytes.

    Raises InvalidArgument when the columns do not fit the tokens or each other, or an id is none.
    """
    count, top = len(token_ids), logprobs.top_count
    if len(logprobs.logprobs) != count:
        raise InvalidArgument(f"{field}.logprobs", f"{len(logprobs.logprobs)} for {count} tokens")
    if len(logprobs.top_token_ids) != count * top or len(logprobs.top_logprobs) != count * top:
        raise InvalidArgument(
            f"{field}.top_token_ids", f"must hold {top} for each of {count} tokens, as top_logprobs must"
        )
    check_ids(f"{field}.top_token_ids", logprobs.top_token_ids)
    return [
        TokenLogprob(
            token_id=token_id,
            token=vocabulary.bytes_of(token_id),
            logprob=logprobs.logprobs[i],
            top=_top(vocabulary, logprobs, i * top, (i + 1) * top),
        )
        for i, token_id in enumerate(token_ids)
    ]


def _top(vocabulary: Vocabulary, logprobs: RowLogprobs, start: int, end: int) -> list[TopLogprob]:
    columns = zip(logprobs.top_token_ids[start:end], logprobs.top_logprobs[start:end], strict=True)
    return [TopLogprob(token_id=i, token=vocabulary.bytes_of(i), logprob=value) for i, value in columns]
