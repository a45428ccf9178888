"""The work that every contender does: seeded token ids, greedy, fixed output lengths."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_LOWEST_ID, _HIGHEST_ID = 300, 30000  # plain tokens: away from the special ones at either end


@dataclass(frozen=True, slots=True)
class Work:
    """`prompts[i]` is answered with exactly `lengths[i]` tokens."""

    prompts: list[list[int]]
    lengths: list[int]

    @property
    def output_tokens(self) -> int:
        return sum(self.lengths)


def decode(salt: int) -> Work:
    """One request: 128 tokens in, 128 out."""
    return Work([_tokens(random.Random(f"decode{salt}"), 128)], [128])


def first_token(salt: int) -> Work:
    """The prefill of `decode` alone, which its time is freed of."""
    return Work(decode(salt).prompts, [1])


def mixed(salt: int) -> Work:
    """32 requests: 64 to 512 tokens in, 32 to 256 out. The lengths are the same for every salt."""
    lengths, rng = random.Random("mixed"), random.Random(f"mixed{salt}")
    shapes = [(lengths.randint(64, 512), lengths.randint(32, 256)) for _ in range(32)]
    return Work([_tokens(rng, prompt) for prompt, _ in shapes], [output for _, output in shapes])


def prefill(salt: int) -> Work:
    """One request: 2048 tokens in, 1 out."""
    return Work([_tokens(random.Random(f"prefill{salt}"), 2048)], [1])


def shared_prefix(salt: int) -> Work:
    """32 requests that share 1024 tokens and have 32 of their own; 32 out."""
    rng = random.Random(f"shared{salt}")
    prefix = _tokens(rng, 1024)
    return Work([prefix + _tokens(rng, 32) for _ in range(32)], [32] * 32)


WORKLOADS: dict[str, Callable[[int], Work]] = {
    "decode": decode,
    "first_token": first_token,
    "mixed": mixed,
    "prefill": prefill,
    "shared_prefix": shared_prefix,
}


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_LOWEST_ID, _HIGHEST_ID) for _ in range(count)]
