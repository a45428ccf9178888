"""What tests of the connector are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes.trtllm.connector import LlmRequest, NewerRequestData, RequestData, SchedulerOutput, get_cache_salt_id
from weir.kvstore.v1.block_hash import block_hashes
from weir_executor.request import StoredPrefix
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.leader import Leader

SIZE = 4
ROOT = bytes(range(16))
SALT = ROOT.hex()
TOKENS = list(range(100, 123))  # five full blocks, and three tokens
HASHES = block_hashes(ROOT, TOKENS, SIZE)
BLOCK_BYTES = 8


def prefix(first: int, end: int, block_bytes: int = BLOCK_BYTES) -> StoredPrefix:
    return StoredPrefix(first, [bytes([place]) * block_bytes for place in range(first, end)])


def new_area(directory: Path, max_bytes: int = 1 << 20) -> Area:
    return Area(directory, max_bytes)


def new_leader(area: Area, sync_blocks: int = 100) -> Leader:
    return Leader(AreaView(area.path, get_cache_salt_id), block_size=SIZE, sync_blocks=sync_blocks)


def ask(
    request_id: int = 1, tokens: Sequence[int] = TOKENS, salt: str | None = SALT, *, newer: bool = True
) -> LlmRequest:
    return LlmRequest(request_id, list(tokens), salt, tells_salt=newer)


def data(
    request_id: int, tokens: Sequence[int], block_ids: Sequence[int], computed: int, scheduled: int
) -> RequestData:
    return RequestData(request_id, list(tokens), list(block_ids), computed, scheduled)


def newer_data(*told: Any, salt: str | None = SALT, groups: Any = ()) -> NewerRequestData:
    made = NewerRequestData(*told)
    made.cache_salt, made.new_block_ids_by_layer_group = salt, groups
    return made


def output(new: Sequence[RequestData] = (), cached: Sequence[RequestData] = ()) -> SchedulerOutput:
    return SchedulerOutput(list(new), list(cached))
