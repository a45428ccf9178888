"""What the backend is told, and what it knows of the model from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OpenEngineConfig:
    """`plain_scope`: of requests without a salt and without an adapter, see `weir.kvstore.v1.block_hash`."""

    address: str  # host:port
    model: str  # as the server calls it
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int  # prompt and generated tokens; the server's own limit counts too
    plain_scope: bytes
    block_size: int = 16  # where the server does not say
    num_blocks: int | None = None  # where the server does not say
    max_num_seqs: int = 32
    max_batched_tokens: int = 512  # where the server does not say
    max_waiting: int = 256
    max_adapter_rank: int = 64
    tls_ca_file: Path | None = None  # PEM; None: without TLS
    start_seconds: float = 600.0
    call_seconds: float = 5.0
    stall_seconds: float = 120.0
