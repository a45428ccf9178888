"""Blocks between a rank's pool and the host's memory, each by its own time: the one module that touches the device.

On a CUDA device, copies run on a stream of their own, behind an event on the engine's: what they read is written by
then, and what they write is read by nobody any more. On a CPU, which is for tests, a copy is done when it is begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class CopiedOut:
    """Rows `[blocks, block_bytes]` in host memory, once `ready`."""

    rows: Any
    done: Any  # an event; None: it is

    @property
    def ready(self) -> bool:
        return self.done is None or self.done.query()

    def payload(self, index: int) -> bytes:
        return self.rows[index].numpy().tobytes()  # type: ignore[no-any-return]


class Copies:
    """Of one rank. `pool` is a tensor `[blocks, …]`, each block's elements without a gap."""

    def __init__(self, pool: Any) -> None:
        """Raises ValueError for one that is not so."""
        import torch  # noqa: PLC0415  # there wherever TensorRT-LLM is; the service itself does without

        if not pool.is_contiguous():
            raise ValueError(f"a pool of strides {tuple(pool.stride())}: its blocks are not one after another")
        self._torch, self._device = torch, pool.device
        self._rows = pool.reshape(pool.shape[0], -1).view(torch.uint8)
        self._stream: Any = torch.cuda.Stream(pool.device) if pool.is_cuda else None  # type: ignore[no-untyped-call]

    @property
    def block_bytes(self) -> int:
        return int(self._rows.shape[1])

    def mark(self, stream: Any) -> Any:
        """An event behind all that `stream` was given until now."""
        return None if self._stream is None else stream.record_event()

    def copy_out(self, block_ids: Sequence[int], stream: Any) -> CopiedOut:
        """Begins; waits for nothing. On the engine's thread."""
        torch = self._torch
        if self._stream is None:
            return CopiedOut(self._rows[list(block_ids)], None)  # an index by a list copies
        rows = torch.empty((len(block_ids), self.block_bytes), dtype=torch.uint8, pin_memory=True)
        self._stream.wait_event(self.mark(stream))
        with torch.cuda.stream(self._stream):
            for row, block_id in zip(rows, block_ids, strict=True):
                row.copy_(self._rows[block_id], non_blocking=True)
            return CopiedOut(rows, self._stream.record_event())

    def copy_in(self, blocks: Sequence[memoryview], block_ids: Sequence[int], stream: Any) -> None:
        """In line with what `stream` is given next."""
        with self._torch.cuda.stream(stream) if self._stream is not None else nullcontext():
            for block, block_id in zip(blocks, block_ids, strict=True):
                self._rows[block_id].copy_(self._torch.frombuffer(block, dtype=self._torch.uint8))

    def copy_in_beside(self, blocks: Sequence[memoryview], block_ids: Sequence[int], after: Any) -> None:
        """Returns when it is done. `after`: as `mark` gave it. On any thread but the engine's."""
        if self._stream is None:
            self.copy_in(blocks, block_ids, None)
            return
        self._torch.cuda.set_device(self._device)
        stream = self._torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_event(after)
        self.copy_in(blocks, block_ids, stream)
        stream.synchronize()
