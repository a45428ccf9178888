"""The seam behind which tokens are guessed. A guess is never trusted: see `verify.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weir_executor.paged.batch import Batch, Scheduled


@dataclass(frozen=True, slots=True)
class Wish:
    """Drafts wanted for a row that brings its sequence's last token alone, and has blocks for `most` more."""

    row: Scheduled
    most: int


class Proposer(Protocol):
    """Guesses at next tokens. Called on the step thread only."""

    def note(self, batch: Batch) -> None:
        """A step is about to write the KV of these tokens; called for every step, before any drafts are wished for."""

    def propose(self, wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        """Drafts for each wish: as many as were wished for, fewer, or none, which then cost nothing."""

    def seconds_per_draft(self) -> float | None:
        """How long it lately took to make one draft of every row at once; None when that is not known."""
