"""How likely tokens are to be as green as they are, if nobody made them so.

Every distinct pair of neighbours counts once: a text that repeats itself shows the same pairs again, and no more
evidence. Without a watermark each pair is green with the probability `green_fraction`, independently of the others, as
the keys are random; so the p-value is the binomial distribution's upper tail, added up exactly (not the normal one's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weir_executor.watermark.green import are_green


@dataclass(frozen=True, slots=True)
class Detection:
    scored_tokens: int
    green_tokens: int
    z_score: float
    p_value: float


def detect(token_ids: Sequence[int], key: bytes, green_fraction: float) -> Detection:
    """Of at least two tokens; the first has none before it and is not scored. Takes milliseconds."""
    assert len(token_ids) >= 2, len(token_ids)
    ids = np.asarray(token_ids, dtype=np.int64)
    pairs = np.unique(np.stack((ids[:-1], ids[1:])), axis=1)
    scored, green = pairs.shape[1], int(are_green(key, pairs[0], pairs[1], green_fraction).sum())
    deviation = math.sqrt(scored * green_fraction * (1 - green_fraction))
    return Detection(scored, green, (green - scored * green_fraction) / deviation, tail(green, scored, green_fraction))


def tail(least: int, count: int, probability: float) -> float:
    """The probability of `least` or more successes out of `count`."""
    if least <= 0:
        return 1.0
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1, dtype=np.float64)))))
    successes = np.arange(least, count + 1)
    ways = log_factorials[count] - log_factorials[successes] - log_factorials[count - successes]
    logs = ways + successes * math.log(probability) + (count - successes) * math.log1p(-probability)
    highest = logs.max()
    return min(1.0, float(np.exp(highest) * np.exp(logs - highest).sum()))
