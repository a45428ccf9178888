"""When the streams of a mock engine get their tokens: alike in every contender's run. Pure but for the file.

The pace is in a file, so that one process answers every scenario. An engine makes steps, and a step answers with all
that is due by then: tokens that were not taken when they were due come together with the next ones.
"""

from __future__ import annotations

import heapq
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "WEIR_BENCH_PACE"


@dataclass(frozen=True, slots=True)
class Pace:
    """`step_seconds`: from one step to the next, as long as there is something to do."""

    tokens_per_second: float  # of each stream
    step_seconds: float

    @property
    def period(self) -> float:
        """Seconds between two tokens of one stream."""
        return 1 / self.tokens_per_second


def write_pace(path: Path, pace: Pace) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(pace)))
    new.rename(path)  # whoever reads it meanwhile reads the old one


def read_pace() -> Pace:
    """As the file says now."""
    return Pace(**json.loads(Path(os.environ[VARIABLE]).read_text()))


@dataclass(slots=True, eq=False)
class Drawing:
    """One stream. `left`: tokens that it still gets; 0 ends it. Times are seconds."""

    left: int
    period: float
    due: float
    index: int = 0  # of its next token


class DueTokens:
    """Whose token is next."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Drawing]] = []
        self._count = 0

    def add(self, drawing: Drawing) -> None:
        self._count += 1  # equals in time are not compared further
        heapq.heappush(self._due, (drawing.due, self._count, drawing))

    def seconds_left(self, now: float) -> float | None:
        """Until the next step; None when there are no streams."""
        return max(0.0, self._due[0][0] - now) if self._due else None

    def take(self, now: float) -> list[tuple[Drawing, int]]:
        """Streams with tokens due, each once, and how many; `left` and `index` are counted on."""
        taken: list[tuple[Drawing, int]] = []
        while self._due and self._due[0][0] <= now:
            drawing = heapq.heappop(self._due)[2]
            if drawing.left > 0:
                taken.append((drawing, min(drawing.left, 1 + int((now - drawing.due) / drawing.period))))
        for drawing, count in taken:
            drawing.left -= count
            drawing.index += count
            drawing.due += count * drawing.period
            if drawing.left:
                self.add(drawing)
        return taken
