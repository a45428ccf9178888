"""What one request has been given so far, token by token: enough to go on with it on other workers. Pure.

    output 0   |<------ delivered ------>|<- drawn ->|
    output 1   |<-- delivered -->|<-- drawn -->| finished
               |<------- resumed at another executor: all of it ------->|
                                 |<- replayed into another postprocess replica: what its client has not got yet ->|

Tokens are kept up to a bound; a request that has drawn more cannot be continued any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, ResumedOutput
from weir.inference.v1.output_pb2 import RowLogprobs, TokenBatch
from weir.postprocess.v1.postprocess_pb2 import OpenedOutput

# Log-probabilities are kept until their tokens are delivered, which is mostly a moment later. One row with twenty
# alternatives takes about 300 bytes, so those of a replica that hangs take 1 MB for each request at most.
_MAX_LOGPROB_ROWS = 4096


class _Output:
    __slots__ = ("delivered", "logprobs", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("I")
        # Of the tokens, counted from the first.
        self.delivered = 0
        # Those that are not delivered whole, each with the index of its first token.
        self.logprobs: list[tuple[int, RowLogprobs]] = []

    def undelivered_logprobs(self) -> RowLogprobs | None:
        """Of all tokens that are drawn and not delivered, as of one row."""
        if not self.logprobs:
            return None
        joined = RowLogprobs(top_count=self.logprobs[0][1].top_count)
        for first, row in self.logprobs:
            skipped = max(0, self.delivered - first)
            joined.logprobs.extend(row.logprobs[skipped:])
            joined.top_token_ids.extend(row.top_token_ids[skipped * row.top_count :])
            joined.top_logprobs.extend(row.top_logprobs[skipped * row.top_count :])
        return joined


class Journal:
    """`max_tokens`: over all outputs. What comes beyond makes it incomplete, and then it holds nothing."""

    def __init__(self, n: int, max_tokens: int):
        self._outputs = [_Output() for _ in range(n)]
        self._max_tokens = max_tokens
        self._num_drawn = 0
        self._logprob_rows = 0
        self._finishes: dict[int, ExecutorOutputFinished] = {}
        # Whether all that was drawn is here.
        self.complete = True

    @property
    def num_drawn(self) -> int:
        """Over all outputs; it goes on counting where nothing is kept any more."""
        return self._num_drawn

    @property
    def longest(self) -> int:
        """Tokens of the output that has most."""
        return max(len(output.token_ids) for output in self._outputs)

    @property
    def finishes(self) -> Mapping[int, ExecutorOutputFinished]:
        """How the executor ended outputs, by their index."""
        return self._finishes

    def draw(self, output_index: int, token_ids: Sequence[int]) -> None:
        self._num_drawn += len(token_ids)
        if self._num_drawn > self._max_tokens:
            self._give_up()
        if self.complete:
            self._outputs[output_index].token_ids.extend(token_ids)

    def draw_untold(self) -> None:
        """Some tokens, of which their worker has told the text alone."""
        self._num_drawn += 1
        self._give_up()

    def draw_logprobs(self, output_index: int, row: RowLogprobs) -> None:
        """Of the tokens that this output drew last. Copied: the row's message holds everybody's."""
        self._logprob_rows += 1
        if self._logprob_rows > _MAX_LOGPROB_ROWS:
            self._give_up()
        if not self.complete:
            return
        copy, output = RowLogprobs(), self._outputs[output_index]
        copy.CopyFrom(row)
        output.logprobs.append((len(output.token_ids) - len(row.logprobs), copy))

    def finish(self, row: ExecutorOutputFinished) -> None:
        """The executor has drawn all of an output."""
        self._finishes[row.output_index] = row

    def deliver(self, output_index: int, count: int) -> None:
        """Its client has been given so many more of the tokens, and their text."""
        output = self._outputs[output_index]
        output.delivered += count
        while output.logprobs and output.logprobs[0][0] + len(output.logprobs[0][1].logprobs) <= output.delivered:
            del output.logprobs[0]
            self._logprob_rows -= 1

    def resumed(self) -> list[ResumedOutput]:
        """For another executor, which goes on after all that was drawn."""
        return [ResumedOutput(output_index=i, token_ids=output.token_ids) for i, output in self._begun()]

    def opened(self) -> list[OpenedOutput]:
        """For another postprocess replica, whose text begins after what was delivered."""
        return [
            OpenedOutput(output_index=i, token_ids=output.token_ids[: output.delivered])
            for i, output in self._begun()
            if output.delivered
        ]

    def undelivered(self, handle: int) -> TokenBatch:
        """For the same replica: what comes after that."""
        batch = TokenBatch()
        for i, output in self._begun():
            token_ids = output.token_ids[output.delivered :]
            if not token_ids:
                continue
            if (logprobs := output.undelivered_logprobs()) is not None:
                logprobs.row = len(batch.handles)
                batch.logprobs.append(logprobs)
            batch.handles.append(handle)
            batch.output_indexes.append(i)
            batch.first_token_indexes.append(output.delivered)
            batch.token_counts.append(len(token_ids))
            batch.token_ids.extend(token_ids)
        return batch

    def _begun(self) -> Iterable[tuple[int, _Output]]:
        assert self.complete, "a journal that is not complete is of no use"
        return ((i, output) for i, output in enumerate(self._outputs) if output.token_ids)

    def _give_up(self) -> None:
        self.complete = False
        for output in self._outputs:
            output.token_ids, output.logprobs = array("I"), []
