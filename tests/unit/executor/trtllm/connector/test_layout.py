from __future__ import annotations

import pytest

from weir_chassis.errors import Unsupported
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.trtllm.connector.layout import ShardLayout, agreed, decode, layout_of
from weir_executor.trtllm.connector.store_link import RankFormat

SHAPE = (100, 4, 2, 512)


def test_the_size_of_a_block_is_that_of_all_its_layers() -> None:
    layout = layout_of(SHAPE, "torch.bfloat16", 2, "auto")
    assert layout == ShardLayout(4 * 2 * 512 * 2, "bfloat16/auto", "trtllm/4x2x512")
    assert decode(layout.encode()) == layout


def test_whatever_differs_in_type_form_size_or_part_is_another_namespace() -> None:
    def namespace(shape: tuple[int, ...], dtype: str, told: str, block_size: int, shard: str) -> bytes:
        layout = layout_of(shape, dtype, 2, told)
        blocks = RankFormat(layout.block_bytes, block_size, layout.kv_dtype, layout.kv_layout)
        return Namespaces(blocks, shard).of(bytes(16))

    base = (SHAPE, "torch.bfloat16", "auto", 32, "")
    others = [
        ((100, 4, 2, 1024), *base[1:]),
        ((100, 2, 4, 512), *base[1:]),
        (SHAPE, "torch.float16", *base[2:]),
        (SHAPE, "torch.bfloat16", "fp8", *base[3:]),
        (*base[:3], 64, ""),
        (*base[:4], "w2r0"),
        (*base[:4], "w2r1"),
        (*base[:4], "w4r0"),
    ]
    assert len({namespace(*base), *(namespace(*each) for each in others)}) == 1 + len(others)
    assert namespace((7, *SHAPE[1:]), *base[1:]) == namespace(*base), "how many blocks there are is not part of it"


def test_ranks_that_are_missing_or_differ_are_refused() -> None:
    layout = layout_of(SHAPE, "torch.bfloat16", 2, "auto")
    assert agreed({0: layout, 1: layout}, 2) == layout
    with pytest.raises(Unsupported, match="rank 1"):
        agreed({0: layout}, 2)
    with pytest.raises(Unsupported, match="differently"):
        agreed({0: layout, 1: layout_of(SHAPE, "torch.uint8", 1, "auto")}, 2)
