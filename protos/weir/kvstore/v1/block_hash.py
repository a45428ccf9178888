"""The address of a KV block, executable: what the comment on `block_hash` in kvstore.proto promises.

    frame(x)      = uint32_le(len(x)) + x
    scope         = frame(model) + frame(revision) + frame(tokenizer_hash) + frame(adapter) + frame(tenant_salt), UTF-8
    root          = BLAKE2b-128(scope,                                        person="weir.scope.v1")
    block_hash[0] = BLAKE2b-128(root            + uint32_le(token_ids of block 0), person="weir.block.v1")
    block_hash[i] = BLAKE2b-128(block_hash[i-1] + uint32_le(token_ids of block i), person="weir.block.v1")

Only full blocks have a hash. A block's length is part of what is hashed, so two block sizes never share an address.
BLAKE2b is RFC 7693; the digest is 16 bytes, no key, no salt, `person` padded with zero bytes to 16.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from struct import Struct

DIGEST_BYTES = 16
_MANY = Struct(f"{DIGEST_BYTES}s" * 64)
_SCOPE, _BLOCK, _NAMESPACE = b"weir.scope.v1", b"weir.block.v1", b"weir.kvspace.v1"


@dataclass(frozen=True, slots=True)
class HashScope:
    """Everything besides the tokens that must agree before two prompts may share a block."""

    model: str
    revision: str
    tokenizer_hash: str
    adapter: str = ""
    tenant_salt: str = ""


def scope_root(scope: HashScope) -> bytes:
    """The 16 bytes that stand where the parent of a prompt's first block would."""
    fields = (scope.model, scope.revision, scope.tokenizer_hash, scope.adapter, scope.tenant_salt)
    return _digest(_framed(fields), _SCOPE)


def block_hash(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """The address of one full block after `parent` (16 bytes). Raises OverflowError for an id outside uint32."""
    return _digest(parent + _little_endian(token_ids), _BLOCK)


def block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The addresses of all full blocks of `token_ids`, first to last; a partial block at the end has none."""
    return list(iterate_block_hashes(root, token_ids, block_size))


def iterate_block_hashes(root: bytes, token_ids: Sequence[int], block_size: int) -> Iterator[bytes]:
    assert block_size > 0, block_size
    packed, width, parent = _little_endian(token_ids), 4 * block_size, root
    for start in range(0, len(packed) - width + 1, width):
        parent = _digest(parent + packed[start : start + width], _BLOCK)
        yield parent


def namespace_fingerprint(root: bytes, *, kv_dtype: str, kv_layout: str, block_size: int, shard: str = "") -> bytes:
    """16 bytes naming the part of a store in which `block_hash` means these very bytes."""
    return _digest(root + _framed((kv_dtype, kv_layout, str(block_size), shard)), _NAMESPACE)


def join_hashes(hashes: Iterable[bytes]) -> bytes:
    """The wire form of a list of hashes: their bytes, one after another."""
    return b"".join(hashes)


def split_hashes(packed: bytes) -> list[bytes]:
    """The inverse of `join_hashes`. Raises ValueError when the length is no multiple of 16."""
    if len(packed) % DIGEST_BYTES:
        raise ValueError(f"{len(packed)} bytes are no whole number of {DIGEST_BYTES}-byte hashes")
    # Many at once, in C: a store does this for every lookup. What is less than so many is split one by one.
    whole = len(packed) - len(packed) % _MANY.size
    hashes = list(chain.from_iterable(_MANY.iter_unpack(memoryview(packed)[:whole])))
    return hashes + [packed[i : i + DIGEST_BYTES] for i in range(whole, len(packed), DIGEST_BYTES)]


def _digest(data: bytes, person: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES, person=person).digest()


def _framed(fields: Iterable[str]) -> bytes:
    encoded = [field.encode() for field in fields]
    return b"".join(len(field).to_bytes(4, "little") + field for field in encoded)


def _little_endian(token_ids: Iterable[int]) -> bytes:
    packed = array("I", token_ids)
    assert packed.itemsize == 4
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
