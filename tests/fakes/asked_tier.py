"""A tier that is asked and not indexed, as those are that hosts share. In memory, and as slow as it is told to be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from weir_kvstore.local_tier import LocalTier
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Counters, TierReport


class AskedTier:
    """Has what the tier behind it has; nobody sees that one's index."""

    def __init__(self, behind: LocalTier) -> None:
        self.behind = behind
        self.answers = asyncio.Event()  # cleared: nothing is answered
        self.answers.set()
        self.asked: list[Sequence[bytes]] = []  # by `match`

    @property
    def name(self) -> str:
        return self.behind.name

    @property
    def counters(self) -> Counters:
        return self.behind.counters

    async def open(self) -> None:
        await self.behind.open()

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        self.asked.append(block_hashes)
        await self.answers.wait()
        return await self.behind.match(namespace, block_hashes)

    async def get(self, address: Address) -> tuple[Record, Bytes] | None:
        await self.answers.wait()
        return await self.behind.get(address)

    async def put(self, record: Record, payload: Bytes) -> bool:
        await self.answers.wait()
        return await self.behind.put(record, payload)

    async def remove(self, addresses: Iterable[Address]) -> int:
        return await self.behind.remove(addresses)

    async def remove_namespace(self, namespace: bytes) -> int:
        return await self.behind.remove_namespace(namespace)

    def report(self) -> TierReport:
        return self.behind.report()

    async def close(self) -> None:
        await self.behind.close()
