"""Traces made up of what is known of such traffic; the same seed makes the same trace. Pure.

conversations   many users, few system prompts: each turn brings back all that was said before and adds to it
zipf            questions about documents, a few of which are asked about all the time
scan            the same, while a batch job reads a long list of other documents once
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import Final

from weir_kvstore.bounds import HASH_BYTES
from weir_kvstore.replay.trace import Lookup

BLOCK_TOKENS: Final = 16
REQUESTS: Final = 2000


def conversations(seed: int, requests: int = REQUESTS) -> Iterator[Lookup]:
    """Some 40 conversations at once, in eight turns on average, a minute apart, behind one of 12 system prompts."""
    random = Random(seed)
    prompts = [_chain(b"", f"system{number}", random.randint(16, 64)) for number in range(12)]
    popular = _zipf(len(prompts), 1.0)
    turns: list[tuple[float, int, bytes]] = []  # when, whose, and all that was said before
    for user in range(40):
        heapq.heappush(turns, (random.uniform(0, 60), user, _draw(random, prompts, popular)))
    for number in range(requests):
        time, user, said = heapq.heappop(turns)
        said = _chain(said, f"turn{number}", random.randint(2, 24))
        yield _lookup(time, said, tenant=f"tenant{user % 4}")
        left = random.random() < 1 / 8
        follows = _draw(random, prompts, popular) if left else said
        heapq.heappush(turns, (time + random.expovariate(1 / 60), user, follows))


def zipf(seed: int, requests: int = REQUESTS) -> Iterator[Lookup]:
    """One of 400 documents of 32 blocks, the k-th as likely as 1/k, and a question of 1 to 4 blocks."""
    random = Random(seed)
    documents = [_chain(b"", f"document{number}", 32) for number in range(400)]
    popular = _zipf(len(documents), 1.0)
    for number in range(requests):
        document = _draw(random, documents, popular)
        yield _lookup(number * 0.1, _chain(document, f"question{number}", random.randint(1, 4)))


def scan(seed: int, requests: int = REQUESTS) -> Iterator[Lookup]:
    """After every question of `zipf`, a document of 32 blocks that nobody asks about again."""
    questions = zipf(seed, (requests + 1) // 2)
    for number in range(requests):
        if number % 2:
            yield _lookup(number * 0.05, _chain(b"", f"batch{number}", 32), tenant="batch")
        else:
            question = next(questions)
            yield _lookup(number * 0.05, question.block_hashes)


SYNTHETIC: Final[Mapping[str, Callable[[int, int], Iterator[Lookup]]]] = {
    "conversations": conversations,
    "zipf": zipf,
    "scan": scan,
}


def _chain(before: bytes, name: str, blocks: int) -> bytes:
    """The hashes before and `blocks` more."""
    hashes = [before[-HASH_BYTES:] or bytes(HASH_BYTES)]
    for number in range(blocks):
        hashes.append(blake2b(hashes[-1] + f"{name}/{number}".encode(), digest_size=HASH_BYTES).digest())
    return before + b"".join(hashes[1:])


def _lookup(time: float, hashes: bytes, tenant: str = "") -> Lookup:
    return Lookup(time, hashes, len(hashes) // HASH_BYTES * BLOCK_TOKENS, tenant)


def _zipf(number: int, exponent: float) -> list[float]:
    """Cumulative weights."""
    return list(accumulate((rank + 1) ** -exponent for rank in range(number)))


def _draw(random: Random, chains: list[bytes], cumulative: list[float]) -> bytes:
    return random.choices(chains, cum_weights=cumulative)[0]
