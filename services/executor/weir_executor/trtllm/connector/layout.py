"""What the bytes of a rank's block are: found out by the rank once the engine has its pool. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from weir_chassis.errors import Unsupported


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """`kv_dtype` and `kv_layout` are part of the store's namespace: where either differs, nothing is found."""

    block_bytes: int  # of one rank
    kv_dtype: str
    kv_layout: str

    def encode(self) -> str:
        return json.dumps(asdict(self))


def decode(text: str) -> ShardLayout:
    return ShardLayout(**json.loads(text))


def layout_of(shape: Sequence[int], dtype: str, item_bytes: int, told_dtype: str) -> ShardLayout:
    """Of a pool `[blocks, layers, keys and values, heads · tokens · features]`.

    What is kept as bytes may mean several things, so the type that was asked for is part of the name.
    """
    block_bytes = item_bytes
    for size in shape[1:]:
        block_bytes *= size
    name = dtype.removeprefix("torch.")
    return ShardLayout(block_bytes, f"{name}/{told_dtype}", f"trtllm/{'x'.join(map(str, shape[1:]))}")


def agreed(layouts: Mapping[int, ShardLayout], ranks: int) -> ShardLayout:
    """The one that all ranks have. Raises Unsupported."""
    if missing := sorted(set(range(ranks)) - set(layouts)):
        raise Unsupported(
            f"the connector of rank {missing[0]} has not come up here: tensor_parallel over several hosts has none"
        )
    if len(set(layouts.values())) != 1:
        raise Unsupported(f"ranks that keep their blocks differently: {sorted(set(map(str, layouts.values())))}")
    return layouts[0]
