"""Uses of blocks that were noted for all of a chain together, and not told to each of them yet. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from weir_kvstore.block import Block

Tell: TypeAlias = Callable[[Iterable[Block]], None]


class Notes:
    """In the order in which they came. A list of blocks is known by being the very object, and stands here once."""

    def __init__(self) -> None:
        self._noted: dict[int, tuple[Tell, Sequence[Block]]] = {}
        self._num_blocks = 0

    def __len__(self) -> int:
        """Blocks, and one for each list."""
        return self._num_blocks

    def has(self, blocks: Sequence[Block]) -> bool:
        return id(blocks) in self._noted

    def add(self, tell: Tell, blocks: Sequence[Block]) -> None:
        assert not self.has(blocks)
        self._noted[id(blocks)] = (tell, blocks)
        self._num_blocks += 1 + len(blocks)

    def take_back(self, tell: Tell, blocks: Sequence[Block]) -> bool:
        """Whether just this was noted of them, and is not any more."""
        noted = self._noted.get(id(blocks))
        if noted is None or noted[0] != tell:
            return False
        del self._noted[id(blocks)]
        self._num_blocks -= 1 + len(blocks)
        return True

    def tell(self) -> None:
        """Whoever is to be told is, and nothing is noted any more."""
        noted, self._noted, self._num_blocks = self._noted, {}, 0
        for tell, blocks in noted.values():
            tell(blocks)
