"""What is asked of every contender, and what is wanted of ours: pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many clients, each with one request of so many tokens at a time. Times are seconds."""

    name: str
    clients: int
    tokens: int
    tokens_per_second: float  # of each stream; 0: as fast as they are taken
    seconds: float  # counted
    warm_up: float = 1.0
    stagger: float = 0.0  # over which the clients begin
    pause: float = 0.0  # of a client between two requests


# One client: what a request takes when nobody else is there.
ALONE = Scenario("alone", clients=1, tokens=16, tokens_per_second=2000, seconds=3, pause=0.002)
# One token for each request: what a request costs.
SHORT = Scenario("short", clients=64, tokens=1, tokens_per_second=0, seconds=3)
# Long answers: what a token costs under load, and at the pace of a real engine's steps.
LONG = Scenario("long", clients=64, tokens=256, tokens_per_second=0, seconds=3)
PACED = Scenario("paced", clients=64, tokens=256, tokens_per_second=100, seconds=3)
# Many slow readers: how late a token is at the worst.
SLOW = Scenario("slow", clients=1000, tokens=512, tokens_per_second=10, seconds=4, warm_up=3.5, stagger=2.0)
SCENARIOS = (ALONE, SHORT, LONG, PACED, SLOW)

# Of our router: µs of its CPU for a token and for a request, ms that it adds to the first token and to the latest ones.
GOALS = {"us_per_token": 10.0, "us_per_request": 600.0, "added_ttft_ms": 1.5, "added_p99_ms": 5.0}
# How far ahead of this peer: a figure of 1 is as good as it.
AHEAD_OF = "dynamo"
