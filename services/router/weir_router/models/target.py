"""What a client's word for a model comes to: a model, perhaps of one revision, and how it was arrived at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    model: str
    # Empty: whichever the fleet agrees on.
    revision: str = ""
    # The name that the client gave, where that was an alias, and the arm of its experiment.
    alias: str = ""
    arm: str = ""
    # As the operator rates it for this alias, in [0, 1]; None: as its model is rated.
    quality: float | None = None
    # By which rule it was chosen where the client left that open; empty: it did not.
    selected_by: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model
