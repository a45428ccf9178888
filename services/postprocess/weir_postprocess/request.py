"""One open request: its options, its outputs, and what it takes from the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1.stream_pb2 import TokenLogprob
from weir.postprocess.v1.postprocess_pb2 import Open
from weir_chassis.errors import InvalidArgument
from weir_postprocess.batch import Row
from weir_postprocess.logprobs import token_logprobs
from weir_postprocess.output import Output, OutputOptions
from weir_postprocess.stop import check_stops, stop_strings
from weir_postprocess.vocabulary import Vocabulary, check_ids

# The contract's: what one prompt may ask for.
MAX_OUTPUTS: Final = 16


@dataclass(slots=True)
class Request:
    vocabulary: Vocabulary
    n: int
    # By output index. A finished output is gone.
    outputs: dict[int, Output]
    # Whether its rows bring log-probabilities, known with the first: all do or none does.
    has_logprobs: bool | None = None

    def live_output(self, output_index: int) -> Output | None:
        """None for one that has finished. Raises InvalidArgument for one that never was."""
        if output_index >= self.n:
            raise InvalidArgument("output_index", f"{output_index} is not below n, which is {self.n}")
        output = self.outputs.get(output_index)
        return None if output is None or output.ended else output

    def accept(self, output: Output, row: Row) -> Sequence[TokenLogprob]:
        """The row's log-probabilities, in the reply's form. Raises InvalidArgument for a row that does not fit."""
        if row.first_token_index != output.next_token_index:
            text = f"{row.first_token_index}; the next token of this output is {output.next_token_index}"
            raise InvalidArgument("tokens.first_token_indexes", text)
        check_ids("tokens.token_ids", row.token_ids)
        if self.has_logprobs is None:
            self.has_logprobs = row.logprobs is not None
        if self.has_logprobs != (row.logprobs is not None):
            raise InvalidArgument("tokens.logprobs", "a request has them for all of its rows or for none")
        if row.logprobs is None:
            return ()
        return token_logprobs(self.vocabulary, row.token_ids, row.logprobs, "tokens.logprobs")


def open_request(opened: Open, vocabulary: Vocabulary) -> Request:
    """Raises InvalidArgument for a field out of its limits."""
    if not 1 <= opened.n <= MAX_OUTPUTS:
        raise InvalidArgument("n", f"{opened.n} is not in [1, {MAX_OUTPUTS}]")
    check_stops(opened.stop)
    options = OutputOptions(
        vocabulary,
        stop_strings(tuple(opened.stop)) if opened.stop else None,
        opened.include_stop_in_output,
        opened.skip_special_tokens if opened.HasField("skip_special_tokens") else True,
    )
    resumed = _resumed(opened)
    return Request(vocabulary, opened.n, {i: Output(options, resumed.get(i, ())) for i in range(opened.n)})


def _resumed(opened: Open) -> Mapping[int, Sequence[int]]:
    resumed = {output.output_index: output.token_ids for output in opened.resumed_outputs}
    if len(resumed) != len(opened.resumed_outputs) or (resumed and max(resumed) >= opened.n):
        raise InvalidArgument("resumed_outputs", f"each is of one of {opened.n} outputs, and no output has two")
    for token_ids in resumed.values():
        check_ids("resumed_outputs.token_ids", token_ids)
    return resumed
