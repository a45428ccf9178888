"""`make churn`: two minutes, and a table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.churn.load import Load
from chaos.churn.run import Churned, churn

_SHOWN_METRICS = ("weir_router_retries_total", "weir_router_refused_retries_total", "weir_router_breaker_moves_total")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--per-second", type=float, default=20.0, help="requests")
    parser.add_argument("--tokens", type=int, default=50, help="of each request")
    parser.add_argument("--deadline", type=float, default=15.0, help="of each request, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the router")
    told = parser.parse_args()
    settings = dict(one.split("=", 1) for one in told.set)
    with TemporaryDirectory() as directory:
        load = Load(told.per_second, told.tokens, told.deadline)
        churned = asyncio.run(churn(Path(directory), told.seconds, load, told.seed, settings))
    print("\n".join(_table(churned)))
    return 0 if is_sound(churned) else 1


def is_sound(churned: Churned) -> bool:
    """What may never be, however bad the luck: a request that hangs, a wrong token, a lease that is left."""
    outcomes = churned.outcomes
    return not (outcomes.hung or outcomes.wrong or churned.held or any(churned.leases.values()))


def _table(churned: Churned) -> Iterator[str]:
    outcomes, fleet = churned.outcomes, churned.fleet
    yield f"workers that died      {sum(fleet.deaths.values()):6d}   " + _counted(fleet.deaths)
    yield f"workers that joined    {fleet.births:6d}"
    yield f"requests               {outcomes.requests:6d}"
    yield f"  answered             {outcomes.answered:6d}   attempts: " + _counted(outcomes.attempts)
    yield f"  continued            {outcomes.continued:6d}"
    yield f"  failed               {sum(outcomes.by_reason.values()):6d}   " + _counted(outcomes.by_reason)
    yield f"error rate             {outcomes.error_rate:8.2%}"
    yield f"wrong answers          {outcomes.wrong:6d}"
    yield f"hung past the deadline {outcomes.hung:6d}   slowest {outcomes.slowest_seconds:.1f} s"
    yield f"leases left            {sum(churned.leases.values()):6.0f}   on executors: {churned.held}"
    for name, value in sorted(churned.metrics.items()):
        if name.startswith(_SHOWN_METRICS) and value:
            yield f"  {name.removeprefix('weir_router_')} {value:.0f}"
    for reason, message in sorted(outcomes.examples.items()):
        yield f"  for example {reason}: {message}"


def _counted(counts: object) -> str:
    assert isinstance(counts, dict), counts
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
