"""What a shared store needs done beside its calls, a bounded piece per turn.

Blocks that were used move away from their end of the order; values that expired or that Redis let go are taken off the
books; values that are in no books, for Redis let those go, come back into them; removals that were owed are paid. Every
host does it: it is done sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from redis.asyncio import Redis

from weir_chassis.clock import Clock
from weir_chassis.store_link import StoreLink
from weir_kvstore.tiers.redis.books import MAX_MEMBERS, Books
from weir_kvstore.tiers.redis.layout import Keys, text
from weir_kvstore.tiers.removals import Removals

# A turn: two scripts of a millisecond or so each, and half a million blocks are gone through in a quarter of an hour.
_TURN_SECONDS: Final = 1.0
_ANCESTORS: Final = 1024  # as in books.lua
# Uses of more blocks than this in one turn are not all told: the order is a guess about the future anyway.
_MAX_TOUCHED: Final = 4096


class Upkeep:
    def __init__(
        self,
        redis: Redis,
        link: StoreLink,
        books: Books,
        keys: Keys,
        removals: Removals,
        *,
        seconds: float,
        clock: Clock,
        random: Random,
    ) -> None:
        """`seconds` for each call."""
        self._redis, self._link, self._books, self._keys, self._removals = redis, link, books, keys, removals
        self._seconds, self._clock, self._random = seconds, clock, random
        self._touched: dict[str, None] = {}  # in the order of their use
        self._values_cursor = self._books_cursor = 0

    def touch(self, chain: Sequence[str]) -> None:
        """These blocks of one chain, from its beginning on, were used. Told to the others with the next turn."""
        if self._books.rules.policy == "lru":
            # Using a block is using those before it, so many of them.
            chain = [*chain[_ANCESTORS - 1 :: _ANCESTORS], *chain[-1:]]
        if self._books.rules.policy != "fifo":
            self._touched.update(dict.fromkeys(chain[: _MAX_TOUCHED - len(self._touched)]))

    async def run(self) -> None:
        """For ever."""
        while True:
            # Hosts that were started together do not come together.
            await self._clock.sleep(_TURN_SECONDS * (0.5 + self._random.random()))
            await self.turn()

    async def turn(self) -> None:
        for work in (self._tell_touched, self._settle_values, self._settle_books, self._books.count_tenants):
            await self._link.ask(work, otherwise=None, seconds=self._seconds)
        await self._removals.pay()

    async def _tell_touched(self) -> None:
        while self._touched:
            batch = list(self._touched)[:MAX_MEMBERS]
            for member in batch:
                del self._touched[member]
            await self._books.touch(batch)

    async def _settle_values(self) -> None:
        pattern = self._keys.blocks_of()
        self._values_cursor, found = await self._redis.scan(self._values_cursor, match=pattern, count=MAX_MEMBERS)
        await self._books.settle(self._keys.members(found)[: 2 * MAX_MEMBERS])

    async def _settle_books(self) -> None:
        key = self._keys.books[0]
        self._books_cursor, found = await self._redis.hscan(key, self._books_cursor, count=MAX_MEMBERS)
        await self._books.settle([text(field) for field in found][: 2 * MAX_MEMBERS])
