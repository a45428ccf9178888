"""The work that every contender does: seeded token ids, greedy, fixed output lengths.

| | requests | tokens in | tokens out |
|---|---|---|---|
| W1 `decode` | 1 | 128 | 128 |
| W2 `mixed` | 32 | 64 to 512 | 32 to 256 |
| W3 `prefill` | 1 | 2048 | 1 |
| W4 `shared_prefix` | 32 | 1024 that all share, and 32 | 32 |

A `salt` gives every round prompts of its own and of the same shape, so that no cache remembers the round before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

VOCAB_SIZE = 49152
_LOWEST_ID, _IDS = 300, 29700  # plain tokens: away from the special ones at either end


@dataclass(frozen=True, slots=True)
class Work:
    """`prompts[i]` is answered with exactly `lengths[i]` tokens."""

    prompts: list[list[int]]
    lengths: list[int]
    cached: bool = True  # may take blocks that another prompt with the same prefix has computed

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        return sum(self.lengths)


def decode(salt: int) -> Work:
    rng = random.Random(1)
    return _salted(Work([_tokens(rng, 128)], [128]), salt)


def first_token(salt: int) -> Work:
    """The prefill of `decode` alone, which its time is freed of. Its prompt is another: no cache has it."""
    return replace(decode(salt + 1000), lengths=[1])


def mixed(salt: int) -> Work:
    rng = random.Random(2)
    requests = [(_tokens(rng, rng.randint(64, 512)), rng.randint(32, 256)) for _ in range(32)]
    return _salted(Work([prompt for prompt, _ in requests], [length for _, length in requests]), salt)


def prefill(salt: int) -> Work:
    return _salted(Work([_tokens(random.Random(3), 2048)], [1]), salt)


def shared_prefix(salt: int) -> Work:
    rng = random.Random(4)
    prefix = _tokens(rng, 1024)
    return _salted(Work([prefix + _tokens(rng, 32) for _ in range(32)], [32] * 32), salt)


def shared_prefix_uncached(salt: int) -> Work:
    return replace(shared_prefix(salt), cached=False)


def shared_blocks(salt: int) -> Work:
    """As `shared_prefix`, with tails of less than a block: nothing but the prefix can be found again."""
    work = shared_prefix(salt)
    return replace(work, prompts=[prompt[: 1024 + 15] for prompt in work.prompts])


def shared_prefix_once(salt: int) -> Work:
    """One more request with the prefix of `shared_prefix`: after it the prefix is warm."""
    work = shared_prefix(salt)
    return Work([work.prompts[0][:1024] + [7] * 32], [1])


def warm_up(salt: int) -> Work:
    """A batch small enough to cost little, large enough to load every kernel and allocator."""
    work = mixed(salt)
    return Work([prompt[:100] for prompt in work.prompts], [8] * len(work.prompts))


WORKLOADS: dict[str, Callable[[int], Work]] = {
    "decode": decode,
    "first_token": first_token,
    "mixed": mixed,
    "prefill": prefill,
    "shared_prefix": shared_prefix,
    "shared_prefix_uncached": shared_prefix_uncached,
    "shared_prefix_once": shared_prefix_once,
    "warm_up": warm_up,
}


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_LOWEST_ID, _LOWEST_ID + _IDS) for _ in range(count)]


def _salted(work: Work, salt: int) -> Work:
    """Every token moved by the same step: other prompts, and prompts that shared a prefix still share one."""
    moved = [[_LOWEST_ID + (token - _LOWEST_ID + 101 * salt) % _IDS for token in prompt] for prompt in work.prompts]
    return replace(work, prompts=moved)
