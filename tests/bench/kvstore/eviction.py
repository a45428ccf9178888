"""Every policy's hit rate on the same made-up traces, with room for a quarter of their blocks."""

from __future__ import annotations

from bench.report import Figures, print_table
from weir_kvstore.replay.replay import distinct_blocks, replay_all
from weir_kvstore.replay.synthetic import SYNTHETIC

_SEED, _REQUESTS = 1, 1_000
_SHARE = 4  # a store that never evicts would hold so many times as much


def measure() -> Figures:
    """Prints its table."""
    figures, rows = Figures(), dict[str, list[str]]()
    for name, make in SYNTHETIC.items():
        trace = list(make(_SEED, _REQUESTS))
        for result in replay_all(trace, [distinct_blocks(trace) // _SHARE]):
            rows.setdefault(result.policy, [result.policy]).append(f"{result.hit_rate:.1%}")
            figures.measured[f"hit rate, {result.policy}, {name}"] = result.hit_rate
    print_table(f"hit rates with room for 1/{_SHARE} of the blocks", ["policy", *SYNTHETIC], list(rows.values()))
    return figures
