"""What a number in a request may be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from weir_chassis.errors import InvalidArgument
from weir_executor.engine import EngineInfo


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    low_is_open: bool = False

    def check(self, field: str, value: float) -> None:
        # Written so that NaN, for which every comparison is false, is out of range.
        above = value > self.low if self.low_is_open else value >= self.low
        if not (above and value <= self.high):
            bracket = "(" if self.low_is_open else "["
            raise InvalidArgument(field, f"{value:g} is outside {bracket}{self.low:g}, {self.high:g}]")


def check_vocabulary(field: str, token_ids: Collection[int], info: EngineInfo) -> None:
    """For token ids that have no sign. Raises InvalidArgument."""
    if token_ids and (largest := max(token_ids)) >= info.vocab_size:
        raise InvalidArgument(field, f"token id {largest} is outside the vocabulary; at most {info.vocab_size - 1}")
