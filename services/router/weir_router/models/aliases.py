"""The aliases in force: which target a subject's request gets now, and what has become of its requests. No I/O.

What is counted here is this router's: each replica judges a canary by the requests that it has routed itself, and
begins anew when it starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.models.canary import Canary, Stage
from weir_router.models.config import AliasTable, TargetTable
from weir_router.models.outcome import End, Outcome
from weir_router.models.sticky import in_order
from weir_router.models.target import Target


@dataclass(frozen=True, slots=True)
class TargetView:
    """What is true of a target now. `reason`: why its weight is not the configured one; empty: it is."""

    target: Target
    # Also of a target without an arm: `model@revision`.
    name: str
    weight: float
    weight_now: float
    reason: str
    requests: int
    failed_requests: int
    # Of a canary.
    stage: Stage | None = None


def unserved(aliases: Mapping[str, Sequence[TargetView]], snapshot: FleetSnapshot) -> Iterator[str]:
    """In words: targets that are to get requests, and that nobody serves."""
    for name, targets in aliases.items():
        for view in targets:
            if view.weight_now and not snapshot.answers(view.target.model, view.target.revision):
                yield f"alias {name}: nobody serves {view.target}"


class _Alias:
    """One alias. Weights change only by its canary."""

    def __init__(self, name: str, table: AliasTable, before: _Alias | None):
        self.name, self.table = name, table
        self._targets = {target.name: target.target(name) for target in table.targets}
        self._canary = self._keep_or_start_canary(before)
        self._ends: dict[str, Counter[End]] = {target: Counter() for target in self._targets}
        if before is not None:
            self._ends |= {target: ends for target, ends in before._ends.items() if target in self._ends}
        self.weights = self._weights_now()

    def order(self, subject: str) -> Sequence[Target]:
        return [self._targets[name] for name in in_order(self.weights, self.name, subject)]

    def note(self, target: Target, outcome: Outcome, now: float) -> TargetView | None:
        """The canary, when what becomes of it has changed."""
        name = target.arm or str(target)
        if name not in self._ends:
            return None  # the file has changed since it was chosen
        self._ends[name][outcome.end] += 1
        canary, table = self._canary, self.table.canary
        if canary is None or table is None:
            return None
        changed = canary.note(outcome, now) if name == table.name else canary.note_baseline(outcome, now)
        if not changed:
            return None
        self.weights = self._weights_now()
        return self._view(table)

    def view(self) -> list[TargetView]:
        return [self._view(target) for target in self.table.targets]

    def _view(self, target: TargetTable) -> TargetView:
        canary, ends = self._canary if target.canary is not None else None, self._ends[target.name]
        return TargetView(
            target=target.target(self.name),
            name=target.name,
            weight=target.weight,
            weight_now=self.weights[target.name],
            reason=canary.reason if canary else "",
            requests=ends.total(),
            failed_requests=ends[End.FAILED] + ends[End.REFUSED],
            stage=canary.stage if canary else None,
        )

    def _keep_or_start_canary(self, before: _Alias | None) -> Canary | None:
        """What is known of a canary holds as long as its table does, whatever else the file says now."""
        target = self.table.canary
        if target is None or target.canary is None:
            return None
        others = sum(other.weight for other in self.table.baseline)
        share = target.weight / (target.weight + others)
        kept = before._canary if before is not None and before.table.canary == target else None
        if kept is not None and kept.final_share == share:
            return kept
        return Canary(target.canary, share)

    def _weights_now(self) -> dict[str, float]:
        weights = {target.name: target.weight for target in self.table.targets}
        target = self.table.canary
        if target is not None and self._canary is not None:
            others = sum(other.weight for other in self.table.baseline)
            share = self._canary.share
            arrived = share == self._canary.final_share
            weights[target.name] = target.weight if arrived else others * share / (1 - share)
        return weights


class Aliases:
    """By name. `apply` puts other tables in force."""

    def __init__(self, tables: Mapping[str, AliasTable]):
        self._aliases: dict[str, _Alias] = {}
        self.apply(tables)

    def apply(self, tables: Mapping[str, AliasTable]) -> None:
        self._aliases = {name: _Alias(name, table, self._aliases.get(name)) for name, table in tables.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._aliases

    @property
    def names(self) -> list[str]:
        return sorted(self._aliases)

    def order(self, name: str, subject: str) -> Sequence[Target]:
        """The subject's own target, and then what it would have without that one. At least one."""
        return self._aliases[name].order(subject)

    def note(self, target: Target, outcome: Outcome, now: float) -> TargetView | None:
        """The alias' canary, when what becomes of it has changed by this. `now`: monotonic seconds."""
        alias = self._aliases.get(target.alias)
        return None if alias is None else alias.note(target, outcome, now)

    def view(self) -> dict[str, list[TargetView]]:
        return {name: self._aliases[name].view() for name in self.names}
