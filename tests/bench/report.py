"""Figures of one run: ratios against a peer in the same run, and the goals they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """`ratios` by name, higher is better; `goals` are the least that is wanted of some; `measured` are absolute."""

    ratios: dict[str, float] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    def update(self, other: Figures) -> None:
        self.ratios.update(other.ratios)
        self.goals.update(other.goals)
        self.measured.update(other.measured)

    def summary(self, bench: str) -> dict[str, object]:
        short = [name for name, goal in self.goals.items() if self.ratios.get(name, 0.0) < goal]
        return {
            "bench": bench,
            "ratios": _rounded(self.ratios),
            "goals": self.goals,
            "measured": _rounded(self.measured),
            "short": short,
        }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(flush=True)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}
