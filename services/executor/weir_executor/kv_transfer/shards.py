"""A block of several ranks, of which each keeps its part in the store by itself: all parts of it, or it is a miss."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Final

from weir_executor.kv_transfer.hashes import shard_namespace
from weir_executor.kv_transfer.race import cut
from weir_executor.kv_transfer.transport import BlockTransport, Match, Payload, Put, PutResult

# Between the leases of one match: no store has it in an id.
_BETWEEN: Final = "\n"


def shard_names(ranks: int) -> list[str]:
    """Of one rank alone there are no parts."""
    return [f"w{ranks}r{rank}" for rank in range(ranks)] if ranks > 1 else [""]


class ShardedTransport:
    """A `BlockTransport`. A payload is the ranks' parts one after another, all of one size."""

    def __init__(self, inner: BlockTransport, shards: Sequence[str]) -> None:
        self._inner, self._shards = inner, shards

    async def match(
        self, namespace: bytes, block_hashes: Sequence[bytes], *, skip_blocks: int, block_size: int, timeout: float
    ) -> Match:
        """As far as every rank's part is held. What was leased of the others is given back when one fails."""
        questions = [
            self._inner.match(
                shard_namespace(namespace, shard),
                block_hashes,
                skip_blocks=skip_blocks,
                block_size=block_size,
                timeout=timeout,
            )
            for shard in self._shards
        ]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        matches = [answer for answer in answers if isinstance(answer, Match)]
        leases = [match.lease_id for match in matches if match.lease_id is not None]
        if len(leases) == len(self._shards):
            matched = min(match.matched_blocks for match in matches)
            return Match(matched, _BETWEEN.join(leases), cut(matches[0].ranges, matched - skip_blocks))
        await self._release(leases, timeout)
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            raise failed[0]
        return Match(min(match.matched_blocks for match in matches), None)

    async def get(
        self, lease_id: str, wanted: Sequence[bytes], *, block_bytes: int, timeout: float
    ) -> AsyncGenerator[Sequence[Payload], None]:
        size = block_bytes // len(self._shards)
        async with AsyncExitStack() as stack:
            parts = [
                await stack.enter_async_context(
                    aclosing(self._inner.get(lease, wanted, block_bytes=size, timeout=timeout))
                )
                for lease in lease_id.split(_BETWEEN)
            ]
            waiting = [deque[Payload]() for _ in parts]
            while await _fill(parts, waiting):
                count = min(map(len, waiting))
                yield [b"".join([each.popleft() for each in waiting]) for _ in range(count)]

    async def put(self, put: Put, *, timeout: float) -> PutResult:
        """Each rank's part; counted is what became of the worst."""
        results = []
        for number, shard in enumerate(self._shards):
            blocks = []
            for block in put.blocks:
                size = len(block.payload) // len(self._shards)
                blocks.append(replace(block, payload=block.payload[number * size : (number + 1) * size]))
            part = replace(put, namespace=shard_namespace(put.namespace, shard), blocks=blocks)
            results.append(await self._inner.put(part, timeout=timeout))
        return min(results, key=lambda result: result.stored + result.present)

    async def release(self, lease_id: str, *, timeout: float) -> None:
        await self._release(lease_id.split(_BETWEEN), timeout)

    async def close(self) -> None:
        await self._inner.close()

    async def _release(self, leases: Sequence[str], timeout: float) -> None:
        """All of them, whichever fails."""
        releases = [self._inner.release(lease, timeout=timeout) for lease in leases]
        answers = await asyncio.gather(*releases, return_exceptions=True)
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            raise failed[0]


async def _fill(parts: Sequence[AsyncGenerator[Sequence[Payload], None]], waiting: Sequence[deque[Payload]]) -> bool:
    """Until there is something of each. False: one has no more."""
    for part, payloads in zip(parts, waiting, strict=True):
        while not payloads:
            came = await anext(part, None)
            if came is None:
                return False
            payloads.extend(came)
    return True
