"""The seam between the step loop and what computes: the PyTorch model, or arithmetic in the fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weir_chassis.errors import Internal, WeirError
from weir_executor.paged.batch import Batch
from weir_executor.step_output import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Draw:
    """A token that a step drew for one sequence."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """What a sequence that pools came to at its end."""

    values: Sequence[float]


class NotFiniteError(Internal):
    """What a row came to is no numbers: its own tokens are to blame, or its drafts."""

    def __init__(self) -> None:
        super().__init__("the model's output for this request is not finite")


# Of one scheduled sequence: its new tokens, which are none when the step did not reach its end, and several when drafts
# were what it would have drawn; or its vector; or what is wrong with it alone.
Result = Sequence[Draw] | Vector | WeirError


class Worker(Protocol):
    """Computes what the scheduler decided. Called on the step thread only."""

    def begin(self) -> None:
        """Called once, before anything else, on the step thread."""

    def run(self, batch: Batch) -> Sequence[Result]:
        """Write the KV of all scheduled tokens; one result per `batch.scheduled`, in its order."""

    def count_usable(self, stored_blocks: Sequence[bytes | memoryview]) -> int:
        """How many leading blocks of a stored prefix are sound. The rest is a miss."""

    @property
    def reads_anywhere(self) -> bool:
        """Whether `read_blocks` may be called on any thread, beside a step that writes other blocks."""

    def read_blocks(self, block_ids: Sequence[int]) -> Sequence[bytes]:
        """Copy the blocks' payloads out."""

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        """Forget what was written there: it is not finite, and would harm the block's next owner."""

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is of no use after this error."""

    def close(self) -> None:
        """Called from the closing thread: leave `run` as soon as possible."""
