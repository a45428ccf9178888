"""Encodings that were computed before, bounded by bytes, least recently used out first.

Retries, hedged attempts and popular prompts come with the same text; a hit costs a hash of the text instead of an
encoding of it. The key is the whole of what decides the answer, so a hit always equals what encoding would give.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from threading import Lock

# What an entry takes besides its ids: the key, two objects and a place in the map, measured at about 250 bytes.
ENTRY_OVERHEAD_BYTES = 256
# 32 bytes and not 16: whoever finds two texts with one key could make a stranger's prompt be another one.
_KEY_BYTES = 32


class CacheEvent(Enum):
    HIT = "hit"
    MISS = "miss"
    EVICTED = "evicted"


def cache_key(model: str, text: str, *, add_special_tokens: bool) -> bytes:
    """32 bytes naming an encoding: BLAKE2b-256 over the flag, the model's name and the text, each framed."""
    name = model.encode()
    digest = blake2b(digest_size=_KEY_BYTES, person=b"weir.encoding")
    digest.update(bytes([add_special_tokens]) + len(name).to_bytes(4, "little") + name)
    digest.update(text.encode())
    return digest.digest()


class EncodingCache:
    """Key → token ids. Used from the worker threads; every method is atomic."""

    def __init__(self, max_bytes: int, observe: Callable[[CacheEvent], None] = lambda _: None):
        """`max_bytes` 0 keeps nothing. `observe` is called from the worker threads at each event."""
        assert max_bytes >= 0, max_bytes
        self._observe = observe
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> array[int] | None:
        """The token ids (uint32) stored under the key, now the most recently used; None when there are none."""
        with self._lock:
            packed = self._entries.get(key)
            if packed is not None:
                self._entries.move_to_end(key)
        self._observe(CacheEvent.MISS if packed is None else CacheEvent.HIT)
        return None if packed is None else array("I", packed)

    def put(self, key: bytes, token_ids: array[int]) -> None:
        """Stores the ids and drops the oldest until all fit. Ids that would fill the cache alone are not stored."""
        packed = token_ids.tobytes()
        if _cost(packed) > self._max_bytes:
            return
        with self._lock:
            self._drop(key)
            self._entries[key] = packed
            self._bytes += _cost(packed)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))
                self._observe(CacheEvent.EVICTED)

    def check_integrity(self) -> None:
        with self._lock:
            assert self._bytes == sum(map(_cost, self._entries.values())) <= self._max_bytes

    def _drop(self, key: bytes) -> None:
        packed = self._entries.pop(key, None)
        if packed is not None:
            self._bytes -= _cost(packed)


def _cost(packed: bytes) -> int:
    return len(packed) + ENTRY_OVERHEAD_BYTES
