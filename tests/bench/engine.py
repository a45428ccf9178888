"""`make bench-engine`: the engine beside its peers in one run, against the goals and against the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench import limits
from bench.comparison import Times, compare, loaded
from bench.limits import Limits
from bench.peers import PEERS, ROUNDED, SUITE, WEIR, Contender
from bench.report import Figures, print_table
from bench.rows import SUITE_GOAL, Row
from bench.workload import decode, mixed, prefill

_PEERS = tuple(peer.name for peer in PEERS)


def measure(model_dir: Path, logs: Path, contenders: Sequence[Contender], rows: Sequence[Row], rounds: int) -> Figures:
    """Prints the tables."""
    times, found = Times(), limits.measure()
    with loaded(contenders, model_dir, logs, times) as children:
        compare(children, rows, rounds, times)
    found = found.best_of(limits.measure())  # before and after: what is wanted is the undisturbed machine
    figures = Figures()
    _print_times(times, rows, [contender.name for contender in contenders])
    _against_peers(times, rows, figures)
    _against_limits(times, limits.read_config(model_dir), found, figures)
    _suite(times, figures)
    _rounded_weights(times, rows, figures)
    figures.missing = times.missing
    return figures


def _print_times(times: Times, rows: Sequence[Row], names: list[str]) -> None:
    header = ["seconds, min / median", *(row.name for row in rows)]
    print_table("Every contender", header, [[name, *(_seconds(times, row, name) for row in rows)] for name in names])


def _seconds(times: Times, row: Row, name: str) -> str:
    taken = times.seconds[row.name].get(name)
    return f"{min(taken):.2f} / {statistics.median(taken):.2f}" if taken else "-"


def _against_peers(times: Times, rows: Sequence[Row], figures: Figures) -> None:
    lines = []
    for row in rows:
        ours = times.best(row.name, WEIR.name)
        assert ours is not None, "we are measured in every row"
        figures.measured[f"{row.name}_seconds"] = ours
        peers = {name: best for name in _PEERS if (best := times.best(row.name, name)) is not None}
        if not peers:
            continue
        peer = min(peers, key=lambda name: peers[name])
        figures.ratios[row.name], figures.goals[row.name] = peers[peer] / ours, row.goal
        lines.append([row.name, _rate(row, ours), _rate(row, peers[peer]), peer, *figures.cells(row.name)])
    print_table("The bare engine against the best peer", ["row", "weir", "peer", "which", "ratio", "goal", ""], lines)


def _rate(row: Row, seconds: float) -> str:
    match row.name:
        case "decode":
            return f"{1e3 * seconds / (decode(0).output_tokens - 1):.2f} ms/token"
        case "prefill":
            return f"{prefill(0).prompt_tokens / seconds:.0f} tokens/s in"
        case "mixed":
            return f"{mixed(0).output_tokens / seconds:.0f} tokens/s out"
        case _:
            return f"{seconds:.2f} s"


def _against_limits(times: Times, config: dict[str, object], found: Limits, figures: Figures) -> None:
    """The share of the machine that is reached. No goal: it says how much is left to win."""
    tokens = decode(0).output_tokens - 1
    least = {
        "decode": (limits.decode_seconds(config, found) * tokens, f"{found.bytes_per_second / 1e9:.1f} GB/s read"),
        "prefill": (
            limits.prefill_seconds(config, prefill(0).prompt_tokens, found),
            f"{found.operations_per_second / 1e9:.0f} GFLOP/s in BF16",
        ),
    }
    lines = []
    for name, (limit, by) in least.items():
        if (ours := times.best(name, WEIR.name)) is not None:
            figures.ratios[f"{name}_of_limit"] = limit / ours
            lines.append([name, f"{ours:.3f} s", f"{limit:.3f} s", by, f"{100 * limit / ours:.0f} %"])
    print_table("The share of the machine's limits", ["row", "weir", "limit", "measured", "reached"], lines)


def _suite(times: Times, figures: Figures) -> None:
    """What five processes and gRPC leave of the bare engine's speed."""
    lines = []
    for name in ("mixed", "decode"):
        bare, suite = times.best(name, WEIR.name), times.best(name, SUITE.name)
        if bare is None or suite is None:
            continue
        key = f"suite_{name}"
        figures.ratios[key] = bare / suite
        if name == "mixed":
            figures.goals[key] = SUITE_GOAL
        lines.append([name, f"{bare:.2f} s", f"{suite:.2f} s", *figures.cells(key)])
    print_table("Through the whole suite", ["row", "bare engine", "suite", "ratio", "goal", ""], lines)


def _rounded_weights(times: Times, rows: Sequence[Row], figures: Figures) -> None:
    """How much faster whole numbers are; `accuracy.py` says what they cost."""
    lines = []
    for row in rows:
        bare = times.best(row.name, WEIR.name)
        for contender in ROUNDED:
            rounded = times.best(row.name, contender.name)
            if bare is not None and rounded is not None:
                key = f"{contender.options[0]}_{row.name}"
                figures.ratios[key] = bare / rounded
                lines.append(
                    [row.name, contender.options[0], _rate(row, rounded), _rate(row, bare), f"{bare / rounded:.2f}"]
                )
    print_table("Rounded weights", ["row", "weights", "rounded", "bfloat16", "ratio"], lines)
