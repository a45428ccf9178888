"""Hit rates as a table: a row for each policy, a column for each capacity. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weir_kvstore.replay.replay import Result


def table(results: Sequence[Result]) -> str:
    """The best of each column has a star."""
    capacities = sorted({result.capacity for result in results})
    rates = {(result.policy, result.capacity): result.hit_rate for result in results}
    best = {capacity: max(rate for (_, c), rate in rates.items() if c == capacity) for capacity in capacities}
    lines = ["policy  " + "".join(f"{capacity:>12}" for capacity in capacities)]
    for policy in dict.fromkeys(result.policy for result in results):
        cells = (_cell(rates[policy, capacity], best[capacity]) for capacity in capacities)
        lines.append((f"{policy:<8}" + "".join(cells)).rstrip())
    return "\n".join(lines)


def _cell(rate: float, best: float) -> str:
    return f"{rate:>11.1%}{'*' if rate == best else ' '}"
