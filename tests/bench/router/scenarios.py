"""What is asked of every contender, and what is wanted of ours: pure."""

from __future__ import annotations

from dataclasses import dataclass

from bench.router.pace import Pace


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many clients, each with one request of so many tokens at a time. Times are seconds."""

    name: str
    clients: int
    tokens: int
    pace: Pace
    seconds: float  # counted
    warm_up: float = 1.0
    stagger: float = 0.0  # over which the clients begin
    pause: float = 0.0  # of a client between two requests


# An engine with many streams makes no faster ones.
_STEP_SECONDS = 0.005
# More tokens than anybody takes: with 64 streams a quarter of a million a second.
_FAST = Pace(4000, _STEP_SECONDS)

# One client: what a request takes when nobody else is there.
ALONE = Scenario("alone", clients=1, tokens=16, pace=Pace(2000, 0.001), seconds=3, pause=0.002)
# One token for each request: what a request costs.
SHORT = Scenario("short", clients=64, tokens=1, pace=_FAST, seconds=3)
# Long answers: what a token costs under load, and at the pace of a real engine's steps.
LONG = Scenario("long", clients=64, tokens=256, pace=_FAST, seconds=3)
PACED = Scenario("paced", clients=64, tokens=256, pace=Pace(100, _STEP_SECONDS), seconds=3)
# Many slow readers: how late a token is at the worst.
SLOW = Scenario("slow", clients=1000, tokens=512, pace=Pace(10, _STEP_SECONDS), seconds=4, warm_up=8.0, stagger=5.0)
SCENARIOS = (ALONE, SHORT, LONG, PACED, SLOW)

# Of our router: µs of its CPU for a token and for a request, ms that it adds to the first token and to the latest ones.
GOALS = {"us_per_token": 10.0, "us_per_request": 600.0, "added_ttft_ms": 1.5, "added_p99_ms": 5.0}
# How far ahead of this peer: a figure of 1 is as good as it.
AHEAD_OF = "dynamo"
