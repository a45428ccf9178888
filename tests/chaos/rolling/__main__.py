"""`make rolling-restart`: two of every service, the demo model, steady streams, and a table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.rolling.run import Plan, Restart, Rolled, roll


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50, help="at any time")
    parser.add_argument("--tokens", type=int, default=100, help="of each stream")
    parser.add_argument("--drain", type=float, default=30.0, help="seconds that a worker may finish streams in")
    parser.add_argument("--fake", action="store_true", help="tokens by arithmetic, a step each 20 ms")
    told = parser.parse_args()
    plan = Plan(told.streams, told.tokens, told.fake, told.drain)
    with TemporaryDirectory() as directory:
        rolled = asyncio.run(roll(Path(directory), plan, _say))
    _summarize(rolled)
    return 0 if rolled.is_sound else 1


def _say(restart: Restart) -> None:
    print(f"restarted {restart.service:28} in {restart.seconds:5.1f} s, ended with {restart.code}", flush=True)


def _summarize(rolled: Rolled) -> None:
    outcomes = rolled.outcomes
    print(f"streams                {outcomes.streams:7d}   of {outcomes.tokens} tokens together")
    print(f"  failed               {sum(outcomes.failed.values()):7d}   {dict(outcomes.failed)}")
    print(f"  repeated or lost     {outcomes.broken:7d}   tokens, as their clients count")
    print(f"  other than wanted    {outcomes.wrong:7d}")
    print(f"  continued            {outcomes.continued:7d}   times")
    print(f"refused and asked again{sum(outcomes.refused.values()):7d}   {dict(outcomes.refused)}")
    print(f"leases left            {rolled.leases:7.0f}")
    for reason, message in sorted(outcomes.examples.items()):
        print(f"  for example {reason}: {message}")


if __name__ == "__main__":
    sys.exit(main())
