"""What ranks say to one another within a step: sums, pieces gathered side by side, and a stage's hidden states.

Gloo between CPUs, NCCL between GPUs, both from `torch.distributed`. The groups are objects of the engine that made
them, not the process's one default group, so that two engines may live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from weir_executor.paged.decoder import DeviceLostError
from weir_executor.paged.parallel.layout import Layout


class RankLostError(DeviceLostError):
    """Another rank died or stands still. The group is of no use any more."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks find one another. Rank 0 keeps the store."""

    host: str
    port: int
    timeout_seconds: float  # of one exchange within a step: beyond it a rank stands still

    def store(self, num_ranks: int, *, is_master: bool) -> distributed.TCPStore:
        timeout = timedelta(seconds=self.timeout_seconds)
        return distributed.TCPStore(self.host, self.port, num_ranks, is_master, timeout=timeout, wait_for_workers=False)


class Ranks:
    """One rank's ends of its groups: `stage`, those that share its layers, and `all` of them."""

    def __init__(
        self, layout: Layout, rank: int, store: distributed.Store, device: torch.device, timeout_seconds: float
    ) -> None:
        self.layout, self.rank, self.device = layout, rank, device
        self.stage, self.part = divmod(rank, layout.tensor)
        timeout = timedelta(seconds=timeout_seconds)
        self._all = _group(distributed.PrefixStore("all", store), rank, layout.num_ranks, device, timeout)
        own = distributed.PrefixStore(f"stage{self.stage}", store)
        self._stage = _group(own, self.part, layout.tensor, device, timeout) if layout.tensor > 1 else None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over the ranks of this stage, in place."""
        if self._stage is not None:
            _wait(self._stage.allreduce([tensor]))
        return tensor

    def gather(self, columns: torch.Tensor) -> torch.Tensor:
        """[rows, columns] of every rank of this stage, side by side in the order of their parts."""
        if self._stage is None:
            return columns
        parts = [torch.empty_like(columns) for _ in range(self.layout.tensor)]
        _wait(self._stage.allgather([parts], [columns.contiguous()]))
        return torch.cat(parts, dim=-1)

    def send(self, tensor: torch.Tensor, rank: int) -> None:
        _wait(self._all.send([tensor.contiguous()], rank, 0))

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, rank: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        _wait(self._all.recv([tensor], rank, 0))
        return tensor


def _group(store: distributed.Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cuda":
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return distributed.ProcessGroupNCCL(store, rank, size, options)
    return distributed.ProcessGroupGloo(store, rank, size, timeout)


def _wait(work: Any) -> None:
    try:
        work.wait()
    except RuntimeError as error:  # of gloo: the connection was closed, or nobody came in time
        raise RankLostError(str(error).splitlines()[0]) from error
