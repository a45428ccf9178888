"""When the streams of a mock engine get their tokens: alike in every contender's run. Pure but for the file.

The pace is in a file, so that one process answers every scenario: tokens per second of each stream, 0 for as fast as
they are taken.
"""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "WEIR_BENCH_PACE"
# A paced engine answers at once all that is due, in steps at least so far apart: 1,000 streams with 10 tokens a second
# each are steps of ten tokens.
STEP_SECONDS = 0.001


def write_pace(path: Path, tokens_per_second: float) -> None:
    new = path.with_suffix(".new")
    new.write_text(str(tokens_per_second))
    new.rename(path)  # whoever reads it meanwhile reads the old one


def period_seconds() -> float:
    """Between two tokens of one stream, as the file says now."""
    rate = float(Path(os.environ[VARIABLE]).read_text())
    return 1 / rate if rate else 0.0


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
        """Until a token is due; None when there are no streams."""
        return max(0.0, self._due[0][0] - now) if self._due else None

    def take(self, now: float) -> list[Drawing]:
        """Streams with a token due, each once, with `left` and `index` counted on."""
        taken: list[Drawing] = []
        while self._due and self._due[0][0] <= now:
            drawing = heapq.heappop(self._due)[2]
            if drawing.left > 0:
                taken.append(drawing)
        for drawing in taken:
            drawing.left -= 1
            drawing.index += 1
            drawing.due += drawing.period
            if drawing.left:
                self.add(drawing)
        return taken
