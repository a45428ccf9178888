"""`make bench-router`: what a router adds, beside its peers and the floor without one, in one run.

Only the router's process is charged; clients, mock workers and routers share the machine.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.environment import MissingPeerError
from bench.report import Figures, print_table
from bench.router.contenders import DIRECT_GRPC, DIRECT_HTTP, PEERS, PROXY, WEIR, Contender, Ready
from bench.router.load import clients
from bench.router.pace import write_pace
from bench.router.processes import cpu_seconds
from bench.router.scenarios import AHEAD_OF, ALONE, GOALS, LONG, PACED, SHORT, SLOW, Scenario

FIGURES = ("us_per_token", "us_per_token_paced", "us_per_request", "added_ttft_ms", "added_p99_ms")


@dataclass(frozen=True, slots=True)
class Sample:
    """One scenario of one contender. Times are seconds; `cpu` is the router's."""

    cpu: float
    tokens: int
    requests: int
    ttft: float  # median
    p99: float  # delay of a token


@dataclass(slots=True)
class Samples:
    """By contender and scenario, every round's."""

    taken: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def best(self, contender: str, figure: str) -> float | None:
        """The least of all rounds, which is the undisturbed one; None when it was not measured."""
        values = [value for value in self._values(contender, figure) if value is not None]
        return min(values, default=None)

    def _values(self, contender: str, figure: str) -> list[float | None]:
        taken = self.taken
        match figure:
            case "us_per_token":
                return [1e6 * s.cpu / s.tokens for s in taken.get((contender, LONG.name), ())]
            case "us_per_token_paced":
                return [1e6 * s.cpu / s.tokens for s in taken.get((contender, PACED.name), ())]
            case "us_per_request":
                return [1e6 * s.cpu / s.requests for s in taken.get((contender, SHORT.name), ())]
            case "ttft_ms":
                return [1e3 * s.ttft for s in taken.get((contender, ALONE.name), ())]
            case "p99_ms":
                return [1e3 * s.p99 for s in taken.get((contender, SLOW.name), ())]
            case _:
                raise AssertionError(figure)

    def added(self, contender: Contender, figure: str) -> float | None:
        """A figure without what the same worker takes with no router before it."""
        assert contender.floor is not None
        whole, floor = self.best(contender.name, figure), self.best(contender.floor, figure)
        return None if whole is None or floor is None else max(0.0, whole - floor)


def measure(scratch: Path, peers: Sequence[str], scenarios: Sequence[Scenario], rounds: int) -> Figures:
    """Prints the tables."""
    contenders = [DIRECT_GRPC, WEIR, PROXY, *([DIRECT_HTTP] if peers else []), *(PEERS[name] for name in peers)]
    samples = uvloop.run(_sample_all(scratch, contenders, scenarios, rounds))
    return _report(samples, [contender for contender in contenders if contender.floor])


async def _sample_all(
    scratch: Path, contenders: Sequence[Contender], scenarios: Sequence[Scenario], rounds: int
) -> Samples:
    samples = Samples()
    for round_ in range(rounds):
        for contender in contenders if round_ % 2 == 0 else reversed(contenders):
            if contender.name in samples.missing:
                continue
            place = scratch / f"{contender.name}-{round_}"
            place.mkdir()
            try:
                await _sample_one(place, contender, scenarios, samples)
            except MissingPeerError as error:
                samples.missing[contender.name] = str(error)
                print(f"  {contender.name} is missing: {error}", flush=True)
    return samples


async def _sample_one(scratch: Path, contender: Contender, scenarios: Sequence[Scenario], samples: Samples) -> None:
    write_pace(scratch / "pace", SHORT.pace)
    async with contender.open(scratch) as ready:
        for scenario in scenarios:
            write_pace(scratch / "pace", scenario.pace)
            sample = await _sample(ready, scenario)
            samples.taken.setdefault((contender.name, scenario.name), []).append(sample)
            print(f"  {contender.name:<12} {scenario.name:<6} {_line(sample)}", flush=True)


async def _sample(ready: Ready, scenario: Scenario) -> Sample:
    async with clients(
        ready.door, scenario.clients, scenario.tokens, stagger=scenario.stagger, pause=scenario.pause
    ) as heard:
        await asyncio.sleep(scenario.warm_up)
        before, heard.counting = cpu_seconds(ready.router), True
        await asyncio.sleep(scenario.seconds)
        heard.counting, cpu = False, cpu_seconds(ready.router) - before
    assert heard.tokens, f"{scenario.name}: not one token came"
    p99 = statistics.quantiles(heard.delays, n=100)[98]
    ttft = statistics.median(heard.first_tokens) if heard.first_tokens else float("nan")
    return Sample(cpu, heard.tokens, heard.requests, ttft, p99)


def _line(sample: Sample) -> str:
    per_request = f"{1e6 * sample.cpu / sample.requests:8.0f} µs/request" if sample.requests else ""
    return (
        f"{sample.tokens:8d} tokens {sample.requests:6d} requests {1e6 * sample.cpu / sample.tokens:7.1f} µs/token "
        f"{per_request}  first {1e3 * sample.ttft:.2f} ms  p99 {1e3 * sample.p99:.2f} ms"
    )


def _report(samples: Samples, contenders: Sequence[Contender]) -> Figures:
    figures = Figures(missing=samples.missing)
    found = {contender.name: _figures(samples, contender) for contender in contenders}
    ours = found[WEIR.name]
    for name in FIGURES:
        figures.measured |= {f"{of}_{name}": value for of, values in found.items() if (value := values[name])}
        if (goal := GOALS.get(name)) and ours[name]:
            figures.ratios[f"{name}_of_goal"], figures.goals[f"{name}_of_goal"] = goal / (ours[name] or 1), 1.0
        for peer in found:
            if peer != WEIR.name and (theirs := found[peer][name]) and ours[name]:
                key = f"{name}_of_{peer}"
                figures.ratios[key] = theirs / (ours[name] or 1)
                if peer == AHEAD_OF and name in ("us_per_token", "us_per_request", "added_ttft_ms"):
                    figures.goals[key] = 1.0
    _print(found, figures)
    return figures


def _figures(samples: Samples, contender: Contender) -> dict[str, float | None]:
    found = {name: samples.best(contender.name, name) for name in FIGURES if not name.startswith("added")}
    return found | {f"added_{name}": samples.added(contender, name) for name in ("ttft_ms", "p99_ms")}


def _print(found: dict[str, dict[str, float | None]], figures: Figures) -> None:
    rows = [
        [name, *(f"{value:.2f}" if (value := values[figure]) is not None else "-" for figure in FIGURES)]
        for name, values in found.items()
    ]
    print_table("What a router costs and adds", ["router", *FIGURES], rows)
    rows = [[name, *figures.cells(name)] for name in figures.ratios]
    print_table("Ours: goal or peer over ours, higher is better", ["figure", "ratio", "goal", ""], rows)
