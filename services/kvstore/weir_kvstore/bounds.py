"""The numbers that the contract (kvstore.proto) states, once."""

from __future__ import annotations

from typing import Final

from weir.kvstore.v1 import block_chunk

HASH_BYTES: Final = 16
# A million tokens in blocks of 16: longer than any context that is served.
MAX_CHAIN_BLOCKS: Final = 65_536
# A commit makes all of them visible in one turn of the event loop, in about 10 ms.
MAX_PUT_BLOCKS: Final = 4096
# One block of the largest models, all layers together; what a hostile size can make us allocate.
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
# Copied and checksummed on the event loop in under a millisecond, and far below gRPC's message limit.
MAX_CHUNK_BYTES: Final = block_chunk.MAX_CHUNK_BYTES
# The longest that a vanished reader keeps blocks from being evicted.
MAX_LEASE_SECONDS: Final = 60.0
# The name of a tenant, which is a key of the books.
MAX_TENANT_BYTES: Final = 128
