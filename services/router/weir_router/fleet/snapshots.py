"""The newest snapshot, made again only as far as something has changed: every request asks for several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from weir_router.fleet.changes import Changes
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.tokenizer_link import TokenizerLink
from weir_router.fleet.views import ExternalView

# Ages and ramps grow by themselves. They are told as they were at most so long ago, which is a tenth of what passes
# between two reports.
_FRESH_SECONDS: Final = 0.1


class Snapshots:
    """One worker's view costs a microsecond or two, so a snapshot of a large fleet costs what a request may not."""

    def __init__(self, changes: Changes, mark: Callable[[FleetSnapshot], FleetSnapshot] = lambda made: made) -> None:
        """`mark` says in a snapshot what no worker says of itself: who is ejected."""
        self._changes, self._mark = changes, mark
        self._snapshot = FleetSnapshot()
        self.departed: frozenset[str] = frozenset()
        self._facts = self._loads = self._counts = -1
        self._expires_at = float("-inf")

    def newest(
        self,
        now: float,
        executors: Iterable[ExecutorLink],
        tokenizers: Iterable[TokenizerLink],
        postprocessors: Iterable[PostprocessLink],
        externals: Callable[[float], tuple[ExternalView, ...]],
        *,
        counted: bool = True,
    ) -> FleetSnapshot:
        """At `now`, in monotonic seconds. Another order of the links, or others, is a change of facts.

        `counted`: what this router has given its workers is to be as it is now, not as it was a moment ago.
        """
        facts, loads, counts = self._changes.of_facts, self._changes.of_loads, self._changes.of_counts
        if facts != self._facts or loads != self._loads or now >= self._expires_at:
            kept = self._snapshot.kept if facts == self._facts else None
            self._facts, self._loads, self._expires_at = facts, loads, now + _FRESH_SECONDS
            made = FleetSnapshot(
                tuple([link.view(now) for link in executors]),
                tuple([link.view() for link in tokenizers]),
                tuple([link.view() for link in postprocessors]),
                generation=facts,
                externals=externals(now),
                kept_before=kept,
                departed=self.departed,
            )
            self._snapshot = self._mark(made)
        elif not counted:
            return self._snapshot
        elif counts != self._counts:
            known = self._snapshot
            self._snapshot = FleetSnapshot(
                tuple([link.recounted(view) for link, view in zip(executors, known.executors, strict=True)]),
                known.tokenizers,
                tuple([link.recounted(view) for link, view in zip(postprocessors, known.postprocessors, strict=True)]),
                generation=facts,
                externals=externals(now),
                kept_before=known.kept,
                departed=self.departed,
            )
        self._counts = counts
        return self._snapshot
