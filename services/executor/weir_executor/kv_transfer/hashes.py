"""Small bounded memories. Pure; what they forget costs a transfer, never a wrong block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from weir.kvstore.v1.block_hash import namespace_fingerprint

# A hash and its place in a dictionary take about 150 bytes, so this memory stays below 40 MB. At 16 tokens a block it
# spans 4 million tokens, more than the prompts that wait and run at any time.
_MAX_HASHES = 262_144
# A deployment has few salts at work at a time.
_MAX_NAMESPACES = 1024


class RecentHashes:
    """The block hashes that were noted last, oldest forgotten first."""

    def __init__(self, capacity: int = _MAX_HASHES) -> None:
        self._capacity = capacity
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._hashes

    def add(self, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            self._hashes[block_hash] = None
            self._hashes.move_to_end(block_hash)
        while len(self._hashes) > self._capacity:
            self._hashes.popitem(last=False)

    def discard(self, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            self._hashes.pop(block_hash, None)


class BlockFormat(Protocol):
    """As much of `EngineInfo` as says what a block's bytes are."""

    @property
    def block_bytes(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def kv_dtype(self) -> str: ...

    @property
    def kv_layout(self) -> str: ...


def shard_namespace(namespace: bytes, shard: str) -> bytes:
    """Of a part of every block, such as one rank's; empty: of whole blocks."""
    if not shard:
        return namespace
    return namespace_fingerprint(namespace, kv_dtype="", kv_layout="", block_size=0, shard=shard)


class Namespaces:
    """The store's namespace for a scope, as this engine's bytes mean it."""

    def __init__(self, info: BlockFormat, shard: str = "") -> None:
        """`shard`: as `shard_namespace`'s."""

        def fingerprint(scope: bytes) -> bytes:
            whole = namespace_fingerprint(
                scope, kv_dtype=info.kv_dtype, kv_layout=info.kv_layout, block_size=info.block_size
            )
            return shard_namespace(whole, shard)

        self.of = lru_cache(maxsize=_MAX_NAMESPACES)(fingerprint)
