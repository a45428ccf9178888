"""One operation on many targets, as it stands. Pure: it starts nothing and waits for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from weir_chassis.errors import WeirError


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one target. `error`: why it failed there."""

    done_bytes: int = 0
    total_bytes: int = 0
    done: bool = False
    error: WeirError | None = None


@dataclass(slots=True)
class Operation:
    """`subject` is what it is about: two on the same cannot be under way at once. `started_at`: seconds since 1970."""

    operation_id: str
    action: str
    subject: str
    started_at: float
    targets: dict[str, Progress] = field(default_factory=dict)
    # Grows with each change.
    version: int = 0
    # Whoever has not begun does not begin any more.
    cancelled: bool = False

    @property
    def done(self) -> bool:
        return all(progress.done for progress in self.targets.values())

    def note(self, target: str, progress: Progress) -> None:
        assert not self.targets[target].done, f"{target} was done"
        self.targets[target] = progress
        self.version += 1
