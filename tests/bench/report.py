"""Figures of one run: ratios against a peer in the same run, and the goals they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """`ratios` by name, higher is better; `goals` are the least that is wanted of some; `measured` are absolute.

    `missing` says of each contender that could not take part why.
    """

    ratios: dict[str, float] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def update(self, other: Figures) -> None:
        self.ratios.update(other.ratios)
        self.goals.update(other.goals)
        self.measured.update(other.measured)
        self.missing.update(other.missing)

    @property
    def short(self) -> list[str]:
        """The goals that were missed; one whose ratio was not measured is."""
        return [name for name, goal in self.goals.items() if self.ratios.get(name, 0.0) < goal]

    def cells(self, name: str) -> tuple[str, str, str]:
        """Ratio, goal and verdict, for a table's row."""
        ratio, goal = f"{self.ratios[name]:.2f}", self.goals.get(name)
        if goal is None:
            return ratio, "", ""
        return ratio, f"{goal:.2f}", "short" if name in self.short else "met"

    def summary(self, bench: str) -> dict[str, object]:
        """What the last line of every bench verb says, as JSON."""
        return {
            "bench": bench,
            "ratios": _rounded(self.ratios),
            "goals": self.goals,
            "short": self.short,
            "measured": _rounded(self.measured),
            "missing": self.missing,
        }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Nothing when there are no rows."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}
