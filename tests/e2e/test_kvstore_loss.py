"""The kvstore is killed under load: nobody notices but the clock, and when it is back, prefixes are shared again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from contract.executor_contract import prompt_of
from e2e.storing import ask, calling, only, stack
from weir_local.processes import Stack

_KILL_AFTER, _REQUESTS, _AT_ONCE = 20, 40, 8
# The supervisor's pause, an interpreter's start, and a breaker's pause after two or three trials that failed.
_BACK_SECONDS = 12.0


async def storm(running: Stack, address: str, handles: Sequence[int]) -> None:
    """`_AT_ONCE` requests at a time on one stream; half of the prompts are those of the other executor's."""
    async with calling(address) as caller:
        for start in range(0, len(handles), _AT_ONCE):
            wave = handles[start : start + _AT_ONCE]
            for handle in wave:
                await caller.submit(handle, prompt_of(16 * 8 + 1, salt=handle), share=True)
            if handles[0] == 0 and start <= _KILL_AFTER < start + _AT_ONCE:
                os.kill(only(running, "kvstore")[0].pid, signal.SIGKILL)
            await caller.until_told(*wave)
        assert not caller.failed, caller.failed
        assert len(caller.ended) == len(handles)
        assert all(len(caller.tokens[handle, 0]) == 8 for handle in handles)


async def shared(running: Stack, salts: Iterator[int]) -> bool:
    """Whether what one executor computes reaches the other, asked with ever new prompts until it does."""
    one, two = only(running, "executor")
    deadline = time.monotonic() + _BACK_SECONDS
    async with calling(one.address) as first, calling(two.address) as second:
        while time.monotonic() < deadline:
            salt = next(salts)
            await ask(first, salt, salt)
            await asyncio.sleep(0.2)  # the blocks are put in the background
            if (await ask(second, salt, salt)).store_cached_tokens:
                return True
    return False


async def test_a_lost_kvstore_costs_no_request_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    salts = count(_REQUESTS * 2)  # prompts that neither executor holds
    async with stack(tmp_path) as running:
        assert await shared(running, salts), "before anything happens"
        killed = only(running, "kvstore")[0].pid
        one, two = only(running, "executor")
        half = _REQUESTS // 2
        await asyncio.gather(
            storm(running, one.address, range(_REQUESTS)),
            storm(running, two.address, range(half, half + _REQUESTS)),
        )
        assert await shared(running, salts)
        assert only(running, "kvstore")[0].pid != killed
        assert only(running, "executor") == [one, two], "no executor was lost with it"
