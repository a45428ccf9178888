"""A block's payload over ranks: layers by stage, heads by part. The kvstore is sent what one process would send."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.finite import all_finite
from weir_executor.paged.kv_cache import KvCache, block_bytes
from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.parallel.command import ClearBlocks, ReadBlocks, WriteBlock
from weir_executor.paged.parallel.crew import Crew
from weir_executor.paged.parallel.layout import Layout


class ParallelBlocks:
    """See `KvBlocks`. `own` is rank 0's part."""

    reads_anywhere = False  # the ranks are asked between two steps

    def __init__(self, own: KvCache, crew: Crew, layout: Layout, config: ModelConfig) -> None:
        self._own, self._crew, self._layout, self._config = own, crew, layout, config
        self.block_bytes = block_bytes(config, own.block_size, own.dtype)
        self._shape = (config.num_layers, 2, config.num_kv_heads, own.block_size, config.head_dim)

    def read_blocks(self, block_ids: Sequence[int]) -> list[bytes]:
        others = self._crew.ask(ReadBlocks(list(block_ids)))
        by_rank = [self._own.read_blocks(block_ids), *others]
        return [self._join([parts[index] for parts in by_rank]) for index in range(len(block_ids))]

    def write_blocks(self, loads: Sequence[BlockLoad]) -> None:
        for load in loads:
            part_of = partial(self._part_of, load.block_id, self._tensor(load.payload, self._shape))
            self._crew.tell_each(part_of)
            self._own.write_blocks([part_of(0).load])

    def is_sound(self, payload: bytes | memoryview) -> bool:
        return len(payload) == self.block_bytes and all_finite(payload, self._own.dtype)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        self._crew.tell(ClearBlocks(list(block_ids)))
        self._own.clear_blocks(block_ids)

    def _part_of(self, block_id: int, whole: torch.Tensor, rank: int) -> WriteBlock:
        return WriteBlock(BlockLoad(block_id, _bytes(self._part(whole, rank))))

    def _part(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        place = self._layout.place(rank, self._config.num_layers)
        heads = self._config.num_kv_heads // self._layout.tensor
        layers = whole[place.first_layer : place.end_layer]
        return layers[:, :, heads * place.part : heads * (place.part + 1)]

    def _join(self, parts: Sequence[bytes]) -> bytes:
        whole = torch.empty(self._shape, dtype=self._own.dtype)
        for rank, payload in enumerate(parts):
            part = self._part(whole, rank)
            part.copy_(self._tensor(payload, tuple(part.shape)))
        return _bytes(whole)

    def _tensor(self, payload: bytes | memoryview, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.frombuffer(bytearray(payload), dtype=self._own.dtype).view(shape)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
