"""Removals from a store elsewhere. One that it does not confirm is owed: it is asked again until it does.

Until then, what was to be removed is not there for this process either: it asks for none of it and puts none of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, TypeAlias

from weir_chassis.telemetry import get_logger
from weir_kvstore.record import Address

# Of a namespace, the blocks; none named: all of it. How many there were, or None: it was not confirmed.
Remove: TypeAlias = Callable[[bytes, Sequence[bytes]], Awaitable[int | None]]

_NAMESPACE: Final = attrgetter("namespace")
# Some 200 bytes each. With more the whole namespace is removed, which costs misses and is never wrong.
_MAX_BLOCKS: Final = 16_384
# A deployment has few at work at a time. What is forgotten is in the log.
_MAX_NAMESPACES: Final = 4096


class Removals:
    def __init__(self, remove: Remove) -> None:
        self._remove = remove
        self._blocks: dict[Address, None] = {}
        self._namespaces: dict[bytes, None] = {}

    def __len__(self) -> int:
        """How many are owed, a namespace as one."""
        return len(self._blocks) + len(self._namespaces)

    def __contains__(self, address: Address) -> bool:
        """Whether this block's removal is owed."""
        return address in self._blocks or address.namespace in self._namespaces

    def before(self, namespace: bytes, block_hashes: Sequence[bytes]) -> Sequence[bytes]:
        """The leading blocks of which none is owed."""
        if not self:
            return block_hashes
        owed = (n for n, block_hash in enumerate(block_hashes) if Address(namespace, block_hash) in self)
        return block_hashes[: next(owed, None)]

    async def remove(self, addresses: Iterable[Address]) -> int:
        """How many there were, as far as is known."""
        removed = 0
        for namespace, group in groupby(sorted(set(addresses)), key=_NAMESPACE):
            hashes = [address.block_hash for address in group]
            count = await self._remove(namespace, hashes)
            removed += count or 0
            if count is None:
                self._owe_blocks(namespace, hashes)
        return removed

    async def remove_namespace(self, namespace: bytes) -> int:
        count = await self._remove(namespace, ())
        if count is None:
            self._owe_namespace(namespace)
        return count or 0

    async def pay(self) -> None:
        """Tries once more with what is owed; the first that is not confirmed ends it."""
        for namespace in list(self._namespaces):
            if await self._remove(namespace, ()) is None:
                return
            del self._namespaces[namespace]
        for namespace, group in groupby(sorted(self._blocks), key=_NAMESPACE):
            blocks = list(group)
            if await self._remove(namespace, [address.block_hash for address in blocks]) is None:
                return
            for address in blocks:
                self._blocks.pop(address, None)

    def _owe_blocks(self, namespace: bytes, block_hashes: Sequence[bytes]) -> None:
        if len(self._blocks) + len(block_hashes) > _MAX_BLOCKS:
            self._owe_namespace(namespace)
        else:
            self._blocks.update(dict.fromkeys(Address(namespace, block_hash) for block_hash in block_hashes))

    def _owe_namespace(self, namespace: bytes) -> None:
        self._namespaces[namespace] = None
        if len(self._namespaces) > _MAX_NAMESPACES:
            forgotten = next(iter(self._namespaces))
            del self._namespaces[forgotten]
            get_logger().error("removal_forgotten", namespace=forgotten.hex())
