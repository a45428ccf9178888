"""The share of its part that a worker gets while it is new: it has to warm up, and nobody knows yet what it is worth.

As Envoy's slow start (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start),
linear from a tenth to the whole.
"""

from __future__ import annotations

import math
from typing import Final

# As little as tells something about it. In steps of the same size, so that workers which came together are equals.
_STEP: Final = 0.1


def ramp(serving_seconds: float, over_seconds: float) -> float:
    """(0, 1]: of a worker that has served for so long, where new ones are spared for `over_seconds`."""
    if serving_seconds >= over_seconds:
        return 1.0
    return max(_STEP, math.floor(serving_seconds / over_seconds / _STEP) * _STEP)
