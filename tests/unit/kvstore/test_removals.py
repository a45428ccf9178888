"""A removal that was not confirmed is owed, and what is owed is not there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest

from servers import redis_server
from unit.kvstore.redis_store import NAMESPACE, block, hashes, held, opened
from weir_kvstore.record import Address
from weir_kvstore.tiers import removals as module
from weir_kvstore.tiers.removals import Removals

OTHER = b"o" * 16


class Elsewhere:
    """Confirms while it is there, and has one of each."""

    def __init__(self) -> None:
        self.there = True
        self.calls: list[tuple[bytes, list[bytes]]] = []

    async def __call__(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int | None:
        self.calls.append((namespace, list(block_hashes)))
        return (len(block_hashes) or 10) if self.there else None


def addresses(*numbers: int, namespace: bytes = NAMESPACE) -> list[Address]:
    return [Address(namespace, block_hash) for block_hash in hashes(*numbers)]


async def test_what_is_confirmed_is_not_owed() -> None:
    removals = Removals(elsewhere := Elsewhere())
    assert await removals.remove([*addresses(2, 1, 2), *addresses(1, namespace=OTHER)]) == 3
    assert await removals.remove_namespace(NAMESPACE) == 10
    assert elsewhere.calls == [(NAMESPACE, hashes(1, 2)), (OTHER, hashes(1)), (NAMESPACE, [])]
    assert not removals
    assert removals.before(NAMESPACE, hashes(1, 2)) == hashes(1, 2)


async def test_what_is_owed_is_not_there_until_it_is_paid() -> None:
    removals = Removals(elsewhere := Elsewhere())
    elsewhere.there = False
    assert await removals.remove(addresses(3, 7)) == 0
    assert await removals.remove_namespace(OTHER) == 0
    assert removals.before(NAMESPACE, hashes(1, 2, 3, 4)) == hashes(1, 2)
    assert removals.before(OTHER, hashes(1)) == []
    assert addresses(7)[0] in removals
    await removals.pay()
    assert len(removals) == 3
    elsewhere.there = True
    await removals.pay()
    assert not removals
    assert elsewhere.calls[-2:] == [(OTHER, []), (NAMESPACE, hashes(3, 7))]


async def test_more_than_can_be_remembered_is_the_whole_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BLOCKS", 2)
    monkeypatch.setattr(module, "_MAX_NAMESPACES", 1)
    removals = Removals(elsewhere := Elsewhere())
    elsewhere.there = False
    await removals.remove(addresses(1, 2, 3))
    assert addresses(9)[0] in removals
    await removals.remove_namespace(OTHER)
    assert addresses(9, namespace=OTHER)[0] in removals
    assert addresses(9)[0] not in removals, "forgotten, and said so"


async def test_blocks_that_were_removed_while_redis_hung_do_not_come_back_with_it() -> None:
    with redis_server() as server:
        async with opened(server, seconds=0.5) as tier, opened(server, seed=2) as other:
            for number in (1, 2, 3):
                assert await tier.put(*block(number, number - 1))
            server.signal(signal.SIGSTOP)
            for _ in range(3):  # from now on it is left alone: nothing is on its way when it goes on
                assert await held(tier, [1]) == []
            assert await tier.remove(addresses(2)) == 0
            server.signal(signal.SIGCONT)
            assert await other.match(NAMESPACE, hashes(1, 2, 3)) == 3, "nobody has told it yet"
            async with asyncio.timeout(10):
                while not await held(tier, [1]):
                    await asyncio.sleep(0.05)
            assert addresses(2)[0] not in [a for a in addresses(1, 2, 3) if await tier.get(a)]
            async with asyncio.timeout(10):
                while tier._removals:
                    await asyncio.sleep(0.05)
            assert await other.match(NAMESPACE, hashes(1, 2, 3)) == 1
            assert await tier.put(*block(2, 1))
            assert await other.match(NAMESPACE, hashes(1, 2, 3)) == 3
