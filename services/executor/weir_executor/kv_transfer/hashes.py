"""Small bounded memories. Pure; what they forget costs a transfer, never a wrong block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache

from weir.kvstore.v1.block_hash import namespace_fingerprint
from weir_executor.engine import EngineInfo

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


class Namespaces:
    """The store's namespace for a scope, as this engine's bytes mean it."""

    def __init__(self, info: EngineInfo) -> None:
        def fingerprint(scope: bytes) -> bytes:
            return namespace_fingerprint(
                scope, kv_dtype=info.kv_dtype, kv_layout=info.kv_layout, block_size=info.block_size
            )

        self.of = lru_cache(maxsize=_MAX_NAMESPACES)(fingerprint)
