"""The outputs of one request: which are still drawn, and of which its client still waits for the end. Pure.

    drawing      ├── an executor draws it ──┤
    unfinished   ├── its client has not been told that it is over ──┤

A stop string turns it round: then the text is over before the executor knows, which is told to stop.
"""

from __future__ import annotations

from collections.abc import Iterable

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import OutputFinished
from weir.postprocess.v1.postprocess_pb2 import PostprocessOutputFinished


class Outputs:
    """Indexes from 0 to `n`."""

    __slots__ = ("_n", "drawing", "unfinished")

    def __init__(self, n: int):
        self._n = n
        self.drawing, self.unfinished = set(range(n)), set(range(n))

    def end(self, output_indexes: Iterable[int]) -> None:
        """These are over for everybody."""
        self.drawing.difference_update(output_indexes)
        self.unfinished.difference_update(output_indexes)

    def over(self) -> list[int]:
        """Those that nobody is to draw any more."""
        return [index for index in range(self._n) if index not in self.drawing]

    def told(self) -> list[int]:
        """Those of which the client knows that they are over."""
        return [index for index in range(self._n) if index not in self.unfinished]


def finished_of(row: PostprocessOutputFinished, drawn: ExecutorOutputFinished | None) -> OutputFinished:
    """How an output ended, as its client is told. `drawn`: as its executor ended it, if one did."""
    finished = OutputFinished(output_index=row.output_index, finish_reason=row.finish_reason)
    if row.HasField("stop"):
        finished.stop = row.stop
    elif row.finish_reason == FinishReason.FINISH_REASON_STOP and drawn is not None and drawn.HasField("stop_token_id"):
        finished.stop_token_id = drawn.stop_token_id
    return finished
