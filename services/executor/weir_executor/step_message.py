"""What one stream has still to be told, and how it becomes one message.

A message costs about as much as all that is in it, so there is one per step: the rows of all requests, by column. While
an earlier message is still being written, the next steps come together here, and an output that advanced in several of
them still takes one row:

    step 7   (handle 1, output 0, first 4)  9
             (handle 2, output 0, first 0)  5        →    handles              1  2
    step 8   (handle 1, output 0, first 5)  8             first_token_indexes  4  0
                                                          token_counts         2  1
                                                          token_ids            9 8 5
"""

from __future__ import annotations

from collections.abc import Sequence

from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir_executor.step_output import TokenLogprobs, TokenOutput


class _Row:
    """The new tokens of one output: `token_ids[0]` is its token number `first_token_index`."""

    __slots__ = ("first_token_index", "logprobs", "token_ids")

    def __init__(self, output: TokenOutput) -> None:
        self.first_token_index = output.first_token_index
        self.token_ids = list(output.token_ids)
        self.logprobs = list(output.logprobs)

    def extend(self, output: TokenOutput) -> None:
        assert output.first_token_index == self.first_token_index + len(self.token_ids), output
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs


class StepMessage:
    """Collects what a stream's next message says. `size` counts entries, so that whoever collects can bound it."""

    __slots__ = ("_accepted", "_ended", "_failed", "_finished", "_rows", "size")

    def __init__(self) -> None:
        self.size = 0  # tokens, log-probabilities, and one for every other thing said
        self._accepted: list[int] = []
        self._rows: dict[tuple[int, int], _Row] = {}
        self._finished: list[pb.ExecutorOutputFinished] = []
        self._ended: list[pb.RequestEnd] = []
        self._failed: list[pb.RequestFailed] = []

    def __bool__(self) -> bool:
        return self.size > 0

    @property
    def urgent(self) -> bool:
        """Whether a request begins or ends in it: somebody waits for that."""
        return bool(self._accepted or self._finished or self._ended or self._failed)

    def add_accepted(self, handle: int) -> None:
        self._accepted.append(handle)
        self.size += 1

    def add_tokens(self, handle: int, output: TokenOutput) -> None:
        """New tokens of one output; those of its earlier steps are already here or already sent."""
        row = self._rows.get((handle, output.output_index))
        if row is None:
            self._rows[handle, output.output_index] = _Row(output)
        else:
            row.extend(output)
        self.size += len(output.token_ids)
        if output.logprobs:
            self.size += len(output.logprobs) * (1 + 2 * len(output.logprobs[0].top_token_ids))

    def add_finished(self, finished: pb.ExecutorOutputFinished) -> None:
        self._finished.append(finished)
        self.size += 1

    def add_ended(self, end: pb.RequestEnd) -> None:
        self._ended.append(end)
        self.size += 1

    def add_failed(self, failed: pb.RequestFailed) -> None:
        self._failed.append(failed)
        self.size += 1

    def pack(self) -> pb.GenerateResponse:
        return pb.GenerateResponse(
            accepted_handles=self._accepted,
            tokens=self._pack_rows() if self._rows else None,
            finished=self._finished,
            ended=self._ended,
            failed=self._failed,
        )

    def _pack_rows(self) -> TokenBatch:
        rows = self._rows.values()
        token_ids: list[int] = []
        for row in rows:
            token_ids += row.token_ids
        return TokenBatch(
            handles=[handle for handle, _ in self._rows],
            output_indexes=[index for _, index in self._rows],
            first_token_indexes=[row.first_token_index for row in rows],
            token_counts=[len(row.token_ids) for row in rows],
            token_ids=token_ids,
            logprobs=[_pack_logprobs(i, row.logprobs) for i, row in enumerate(rows) if row.logprobs],
        )


def _pack_logprobs(row: int, logprobs: Sequence[TokenLogprobs]) -> RowLogprobs:
    top_count = len(logprobs[0].top_token_ids)
    assert all(len(token.top_token_ids) == len(token.top_logprobs) == top_count for token in logprobs), top_count
    return RowLogprobs(
        row=row,
        logprobs=[token.logprob for token in logprobs],
        top_count=top_count,
        top_token_ids=[token_id for token in logprobs for token_id in token.top_token_ids],
        top_logprobs=[logprob for token in logprobs for logprob in token.top_logprobs],
    )
