"""Whether a request goes on when one of its workers fails it. Pure.

Before the first token is drawn, another worker begins the request anew. After it another one goes on: after the tokens
that are drawn, with the same seed, so that it draws what the first would have drawn where the two are exact for each
other: of one revision, and of one engine, kernels and number formats as they say themselves (`ExecutorModel.numerics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from weir.inference.v1 import routing_pb2
from weir_chassis.errors import Draining, WeirError, WorkerLost


class Mode(Enum):
    """What becomes of a stream whose worker is lost, stalls or drains."""

    # It goes on where the tokens are those that the first worker would have drawn, and ends elsewhere.
    EXACT = "exact"
    # It goes on, and is told whether they are.
    BEST_EFFORT = "best_effort"
    NONE = "none"


_ASKED: Final[Mapping[int, Mode]] = {
    routing_pb2.CONTINUATION_MODE_EXACT: Mode.EXACT,
    routing_pb2.CONTINUATION_MODE_BEST_EFFORT: Mode.BEST_EFFORT,
    routing_pb2.CONTINUATION_MODE_NONE: Mode.NONE,
}


def mode_of(asked: routing_pb2.ContinuationMode.ValueType, configured: Mode) -> Mode:
    """What the client asks for, else what its model is configured for."""
    return _ASKED.get(asked, configured)


def may_go_on(mode: Mode, *, drawn: bool, complete: bool) -> bool:
    """Whether another worker may be given a request that one has failed, as far as the request itself goes.

    `drawn`: some token is drawn. `complete`: all that are can be told to another worker.
    """
    return not drawn or (mode is not Mode.NONE and complete)


def told(error: WeirError, worker: str) -> WeirError:
    """What the client is told when nothing goes on: to it a worker that drains under its stream is one that is lost."""
    if isinstance(error, Draining):
        return WorkerLost(f"{worker} was lost: {error.message}", metadata={"worker": worker})
    return error
