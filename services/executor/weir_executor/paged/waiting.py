"""Sequences that wait, in lines: one per priority and tenant, each in order of places and arrival. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from heapq import heapify, heappop, heappush

from weir_executor.paged.sequence import Sequence
from weir_executor.paged.tenants import FairShare


class WaitingQueue:
    """Highest priority first, then the tenant whose turn it is, then first come, first served."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._lines: dict[int, dict[str, list[Sequence]]] = {}  # by priority, by tenant; no line is empty

    def __len__(self) -> int:
        return sum(len(line) for lines in self._lines.values() for line in lines.values())

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order that matters."""
        for lines in self._lines.values():
            for line in lines.values():
                yield from line

    @property
    def highest_priority(self) -> int | None:
        return max(self._lines, default=None)

    def add(self, sequence: Sequence) -> None:
        lines = self._lines.setdefault(sequence.priority, {})
        insort(lines.setdefault(sequence.tenant, []), sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        lines = self._lines[sequence.priority]
        line = lines[sequence.tenant]
        index = bisect_left(line, _arrival(sequence), key=_arrival)
        assert line[index] is sequence, sequence
        del line[index]
        if not line:
            del lines[sequence.tenant]
        if not lines:
            del self._lines[sequence.priority]

    def in_order(self, passed_over: Container[str] = ()) -> Iterator[Sequence]:
        """Each sequence when its turn comes. Between two of them the last one given may be removed, its tenant charged
        or added to `passed_over`: what follows takes that into account."""
        for priority in sorted(self._lines, reverse=True):
            yield from self._in_turns(self._lines[priority], passed_over)

    def _in_turns(self, lines: dict[str, list[Sequence]], passed_over: Container[str]) -> Iterator[Sequence]:
        # Only the tenant that has just had its turn can have a new counter, so each entry is true when it is reached.
        turns = [(self._share.counter(tenant), _arrival(line[0]), 0, tenant, line) for tenant, line in lines.items()]
        heapify(turns)
        while turns:
            _, __, index, tenant, line = heappop(turns)
            if tenant in passed_over:
                continue
            sequence = line[index]
            yield sequence
            index += index < len(line) and line[index] is sequence
            if index < len(line):
                heappush(turns, (self._share.counter(tenant), _arrival(line[index]), index, tenant, line))


def _arrival(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.arrival
