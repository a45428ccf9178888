"""What a number in a request may be."""

from __future__ import annotations

from dataclasses import dataclass

from weir_chassis.errors import InvalidArgument


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
