"""Cache salts: who finds whose blocks in an engine that computes its own names for them. Pure.

A salt is the scope's root in hex where requests share blocks, and different for every request where they do not.
"""

from __future__ import annotations

from typing import Final

from weir.kvstore.v1.block_hash import DIGEST_BYTES
from weir_executor.request import GenerationRequest

_SALT_CHARS: Final = 2 * DIGEST_BYTES


def shared_salt(cache_scope: bytes) -> str:
    return cache_scope.hex()


def private_salt(name: int | str) -> str:
    """One that no scope has. `name`: that nobody else gives to the same engine."""
    return f"private-{name}"


def shares_blocks(request: GenerationRequest, block_size: int) -> bool:
    """Whether its blocks have names that others may know: those of its scope."""
    return bool(request.cache_scope) and (bool(request.block_hashes) or len(request.token_ids) < block_size)


def scope_of(salt: object) -> bytes | None:
    """The root that a shared salt names; None: it is none."""
    if not isinstance(salt, str) or len(salt) != _SALT_CHARS:
        return None
    try:
        return bytes.fromhex(salt)
    except ValueError:
        return None
