"""How often anything that a snapshot shows has changed: counting is all that a token costs here."""

from __future__ import annotations


class Changes:
    """`of_counts`: what is routed where, at every token. `of_loads`: a worker has reported its load.

    `of_facts`: everything else, which is rare.
    """

    __slots__ = ("of_counts", "of_facts", "of_loads")

    def __init__(self) -> None:
        self.of_counts = 0
        self.of_loads = 0
        self.of_facts = 1

    def note_fact(self) -> None:
        self.of_facts += 1
