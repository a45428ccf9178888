"""Which of the workers whose breakers refuse are left out: never so many that the rest could not bear the load. Pure.

Envoy has two limits for this, the share of hosts that may be ejected at once and the share of healthy ones below which
health is disregarded ("panic"); here one number is both, so there is no step from few hosts to all:
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/panic_threshold
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def ejected(pool: Sequence[str], refusing_since: Mapping[str, float], max_share: float) -> frozenset[str]:
    """At most `max_share` ([0, 1)) of the pool: those that have been refusing for longest.

    `pool`: addresses of the workers that could take the same requests, were they well. When more refuse, the reason is
    seldom the workers', and those that came last go on: where all fail alike, nothing is lost by asking them.
    """
    assert 0 <= max_share < 1, max_share
    refusing = sorted((worker for worker in pool if worker in refusing_since), key=lambda w: (refusing_since[w], w))
    return frozenset(refusing[: int(max_share * len(pool))])
