"""Who asks for what, and when. Each is drawn from a seed, and the same again from the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Final

from sim.executor import BLOCK_TOKENS, Spec
from sim.router import Asked


@dataclass(frozen=True, slots=True)
class Workload:
    """`churn_seconds`: so often an executor dies, and another one comes; None: they stay."""

    asked: tuple[Asked, ...]
    executors: int = 8
    routers: int = 1
    spec: Spec = field(default_factory=Spec)
    churn_seconds: float | None = None


def chain(*path: object, blocks: int, after: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
    """Hashes of so many blocks that stand for this path, after others."""
    hashes, parent = list(after), after[-1] if after else b""
    for position in range(blocks):
        parent = blake2b(parent + repr((path, position)).encode(), digest_size=16).digest()
        hashes.append(parent)
    return tuple(hashes)


def shared_prefixes(seed: int, requests: int = 800) -> Workload:
    """Forty long system prompts, some much more asked for than others, and a question after each."""
    random = Random(seed)
    prefixes = [chain("system", i, blocks=128) for i in range(40)]
    weights = [1 / (i + 1) for i in range(40)]
    drawn = random.choices(prefixes, weights, k=requests)
    times = _at_rate(random, 28.0, requests)
    return Workload(tuple(_asked(n, times[n], random, 8, prefix=drawn[n]) for n in range(requests)))


def nothing_shared(seed: int, requests: int = 800) -> Workload:
    """Every prompt is its own, and they are of very different lengths."""
    random = Random(seed)
    times = _at_rate(random, 50.0, requests)
    blocks = [round(random.lognormvariate(4.0, 0.8)) for _ in times]
    return Workload(tuple(_asked(n, times[n], random, blocks[n]) for n in range(requests)))


def stale_bursts(seed: int, requests: int = 800) -> Workload:
    """Four routers, each with a part of every burst, and with reports from before it."""
    random = Random(seed)
    times = [3.0 * (n // 100) + random.uniform(0.0, 0.05) for n in range(requests)]
    return Workload(tuple(_asked(n, at, random, 60) for n, at in enumerate(times)), routers=4)


def cold_groups(seed: int, requests: int = 800) -> Workload:
    """Every two seconds thirty at once begin alike, as nobody has before."""
    random = Random(seed)
    prefixes = [chain("group", i, blocks=64) for i in range(requests // 30 + 1)]
    times = [2.0 * (n // 30) + random.uniform(0.0, 0.5) for n in range(requests)]
    return Workload(tuple(_asked(n, at, random, 8, prefix=prefixes[n // 30]) for n, at in enumerate(times)))


def one_hot_prefix(seed: int, requests: int = 800) -> Workload:
    """Nine of ten begin alike, which must not pull their executor down."""
    random = Random(seed)
    hot = chain("hot", blocks=128)
    times = _at_rate(random, 60.0, requests)
    return Workload(
        tuple(_asked(n, at, random, 16, prefix=hot if random.random() < 0.9 else ()) for n, at in enumerate(times)),
        spec=Spec(slots=32),
    )


def conversations(seed: int, requests: int = 800) -> Workload:
    """Sessions of growing prompts: each turn begins with all that was said before."""
    random = Random(seed)
    times, history, asked = _at_rate(random, 20.0, requests), dict[int, tuple[bytes, ...]](), list[Asked]()
    for number, at in enumerate(times):
        session = random.randrange(max(1, requests // 12))
        one = _asked(number, at, random, 24, prefix=history.get(session, ())[:400], session=f"s{session}")
        history[session] = one.block_hashes
        asked.append(one)
    return Workload(tuple(asked))


def churn(seed: int, requests: int = 800) -> Workload:
    """Shared prefixes, while executors die with what they hold and others come that hold nothing."""
    return Workload(shared_prefixes(seed, requests).asked, churn_seconds=4.0)


WORKLOADS: Final[Mapping[str, Callable[[int], Workload]]] = {
    "shared prefixes": shared_prefixes,
    "nothing shared": nothing_shared,
    "stale bursts": stale_bursts,
    "cold groups": cold_groups,
    "one hot prefix": one_hot_prefix,
    "conversations": conversations,
    "churn": churn,
}


def _at_rate(random: Random, per_second: float, count: int) -> list[float]:
    """Arrivals of a Poisson process."""

    def times() -> Iterator[float]:
        at = 0.0
        for _ in range(count):
            at += random.expovariate(per_second)
            yield at

    return list(times())


def _asked(
    number: int, at: float, random: Random, own_blocks: int, *, prefix: tuple[bytes, ...] = (), session: str = ""
) -> Asked:
    hashes = chain("own", number, blocks=max(1, own_blocks), after=prefix)
    tokens = len(hashes) * BLOCK_TOKENS + random.randrange(BLOCK_TOKENS)
    return Asked(number, at, hashes, max(1, tokens), output_tokens=random.randint(20, 200), session=session)
