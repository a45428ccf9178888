"""The memory behind block ids: keys and values of every block and layer.

    blocks   [layers, 2 (keys, values), num_blocks, kv_heads, block_size, head_dim]

A block's payload is its slice over layers, keys and values: [layers, 2, kv_heads, block_size, head_dim], in the cache's
dtype, little endian. Heads stand outside tokens, so that gathering pieces of (block, head) gives each head's tokens in
one row, [kv_heads, tokens, head_dim], which is what attention multiplies with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.finite import all_finite
from weir_executor.paged.model.config import ModelConfig

KV_LAYOUT = "layer,kv,head,token,dim"


@dataclass(frozen=True, slots=True)
class Gather:
    """One step's reading of some sequences' blocks: the same pieces in every layer."""

    num_sequences: int
    pieces: torch.Tensor


class KvCache:
    """All blocks start as zeros and hold finite numbers ever after: what a mask hides is still multiplied by zero."""

    # Each thread on which PyTorch copies has OpenMP helpers of its own, and those slow the step thread down.
    reads_anywhere = False

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size, self.num_kv_heads, self.head_dim = block_size, config.num_kv_heads, config.head_dim
        self.dtype, self.device = dtype, device
        self.block_bytes = block_bytes(config, block_size, dtype)
        self.layer_block_bytes = self.block_bytes // (2 * config.num_layers)  # a block's keys, or values, in one layer
        self.block_shape = (config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
        layers, parts, *inside = self.block_shape
        self._blocks = torch.zeros((layers, parts, num_blocks, *inside), dtype=dtype, device=device)
        # Views by layer, keys and values apart: a row per token and head to write, a row per block and head to gather.
        per_layer = [self._blocks[layer].flatten(1, 2) for layer in range(layers)]
        self._tokens = [layer.flatten(1, 2).unbind() for layer in per_layer]
        self._pieces = [layer.flatten(2).unbind() for layer in per_layer]
        self._room = torch.empty((2, 0, block_size * config.head_dim), dtype=dtype, device=device)
        self._heads = torch.arange(config.num_kv_heads, device=device)
        # Called before a step touches a layer: what is being loaded into it must be there.
        self.before_layer: Callable[[int], None] = _nothing_arrives

    def layer_blocks(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values where they lie, [num_blocks, kv_heads, block_size, head_dim] each."""
        self.before_layer(layer)
        keys, values = self._blocks[layer].unbind()
        return keys, values

    def token_rows(self, slots: Sequence[int]) -> torch.Tensor:
        """Where tokens are written: a slot is block_id * block_size + offset. For `write`."""
        slot = torch.tensor(slots, dtype=torch.int64, device=self.device).unsqueeze(1)
        pieces = slot // self.block_size * self.num_kv_heads + self._heads
        return (pieces * self.block_size + slot % self.block_size).flatten()

    def plan_gather(self, table: Sequence[Sequence[int]]) -> Gather:
        """Where the pieces of sequences' blocks are, for a table of as many block ids each; and room for them."""
        block_ids = torch.tensor(table, dtype=torch.int64, device=self.device).unsqueeze(1)
        pieces = (block_ids * self.num_kv_heads + self._heads.unsqueeze(1)).flatten()
        if self._room.shape[1] < len(pieces):
            self._room = self._room.new_empty((2, len(pieces), self.block_size * self.head_dim))
        return Gather(len(table), pieces)

    def write(self, layer: int, token_rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put tokens' keys and values, [tokens, kv_heads, head_dim], into their slots."""
        self.before_layer(layer)
        key_rows, value_rows = self._tokens[layer]
        key_rows.index_copy_(0, token_rows, keys.flatten(0, 1))
        value_rows.index_copy_(0, token_rows, values.flatten(0, 1))

    def gather_keys(self, layer: int, plan: Gather) -> torch.Tensor:
        """The table's sequences, [sequences, kv_heads, tokens, head_dim], until the next keys are gathered."""
        return self._gather(self._pieces[layer][0], plan, self._room[0])

    def gather_values(self, layer: int, plan: Gather) -> torch.Tensor:
        """Like `gather_keys`, in a room of their own."""
        return self._gather(self._pieces[layer][1], plan, self._room[1])

    def _gather(self, pieces: torch.Tensor, plan: Gather, room: torch.Tensor) -> torch.Tensor:
        """All gathers go to the same room, which the processor's cache then knows."""
        found = room[: len(plan.pieces)]
        torch.index_select(pieces, 0, plan.pieces, out=found)
        return found.view(plan.num_sequences, self.num_kv_heads, -1, self.head_dim)

    def gather_blocks(self, block_ids: Sequence[int]) -> torch.Tensor:
        """The payloads of these blocks on the device, [blocks, layers, 2, kv_heads, block_size, head_dim], copied."""
        where = torch.tensor(block_ids, dtype=torch.int64).to(self.device, non_blocking=True)
        return self._blocks.movedim(2, 0).index_select(0, where)

    def read_blocks(self, block_ids: Sequence[int]) -> list[bytes]:
        """The payloads of these blocks, copied out."""
        return [_to_bytes(self._blocks[:, :, block_id]) for block_id in block_ids]

    def write_blocks(self, loads: Sequence[BlockLoad]) -> None:
        for load in loads:
            self._blocks[:, :, load.block_id].copy_(self.from_bytes(load.payload))

    def put_layer(self, layer: int, where: torch.Tensor, blocks: torch.Tensor) -> None:
        """One layer of the blocks at these places, [2, blocks, kv_heads, block_size, head_dim].

        From pinned memory, the caller does not wait for it.
        """
        self._blocks[layer].index_copy_(1, where, blocks.to(self.device, non_blocking=True))

    def is_sound(self, payload: bytes | memoryview) -> bool:
        """Whether a payload may be written: of the right length, and all finite."""
        return len(payload) == self.block_bytes and all_finite(payload, self.dtype)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            self._blocks[:, :, block_id].zero_()

    def from_bytes(self, payload: bytes | memoryview) -> torch.Tensor:
        """A payload in host memory, [layers, 2, kv_heads, block_size, head_dim]."""
        # A bytearray, because PyTorch warns about memory that it may not write to.
        return torch.frombuffer(bytearray(payload), dtype=self.dtype).view(self.block_shape)


def _nothing_arrives(_layer: int) -> None:
    """What is loaded is there when `write_blocks` returns."""


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Of one block, all layers."""
    return config.num_layers * 2 * config.num_kv_heads * block_size * config.head_dim * dtype.itemsize


def _to_bytes(block: torch.Tensor) -> bytes:
    return block.contiguous().cpu().view(torch.uint8).numpy().tobytes()
