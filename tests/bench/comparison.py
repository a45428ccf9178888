"""Contenders take turns on one machine, workload by workload, round by round, so that noise hits all of them alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.environment import MissingPeerError
from bench.peers import ROUNDED, SUITE, WEIR, Contender
from bench.rows import Row, in_turn, salt, worth_another_round
from bench.running import ContenderError, Running, running

_OURS = frozenset(contender.name for contender in (WEIR, *ROUNDED, SUITE))


@dataclass(slots=True)
class Times:
    """`seconds[row][name]` of every round. `missing` says why a contender has none, or no more."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    missing: dict[str, str] = field(default_factory=dict)

    def best(self, row: str, name: str) -> float | None:
        taken = self.seconds[row].get(name)
        return min(taken) if taken else None


@contextmanager
def loaded(contenders: Sequence[Contender], model_dir: Path, logs: Path, times: Times) -> Iterator[list[Running]]:
    """All that can take part, loaded at once. Whoever cannot is noted, and the rest goes on."""
    with ExitStack() as stack:
        children = []
        for contender in contenders:
            began = time.monotonic()
            try:
                children.append(stack.enter_context(running(contender, model_dir, logs)))
            except (MissingPeerError, ContenderError) as error:
                _give_up(contender.name, error, times)
            else:
                print(f"  {contender.name} is ready after {time.monotonic() - began:.0f} s", flush=True)
        yield children


def compare(children: list[Running], rows: Sequence[Row], rounds: int, times: Times) -> None:
    """Adds every round's seconds to `times`."""
    by_name = {child.name: child for child in children}
    for round_ in range(rounds):
        for row in rows:
            for name in in_turn(list(by_name), round_):
                child = by_name[name]
                taken = times.seconds[row.name]
                if name in times.missing or not child.contender.takes(row.name):
                    continue
                if worth_another_round(name, taken, _OURS):
                    _measure(child, row, salt(row, round_), times)


def _measure(child: Running, row: Row, salt: int, times: Times) -> None:
    try:
        if row.before:
            child.seconds(row.before, salt)
        seconds = child.seconds(row.workload, salt)
        if row.less:
            seconds -= child.seconds(row.less, salt)
    except ContenderError as error:
        _give_up(child.name, error, times)
        return
    times.seconds[row.name][child.name].append(seconds)
    print(f"  {row.name:<16} {child.name:<24} {seconds:8.3f} s", flush=True)


def _give_up(name: str, error: Exception, times: Times) -> None:
    """A peer may fail; without our own engine there is nothing to compare."""
    if name == WEIR.name:
        raise error
    times.missing[name] = str(error)
    print(f"  {name} is missing: {error}", flush=True)
