"""Whether a model and its cache fit the device's memory: asked before anything is loaded, and answered with numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from weir_executor.memory.estimate import DoesNotFitError, Estimate, Setup, check_fit, estimate, gib
from weir_executor.memory.shape import read_shape
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.parallel.layout import Layout
from weir_executor.paged.workload import Workload

_log = logging.getLogger(__name__)
# How weights are kept that are rounded when they are loaded, by their bits.
_ROUNDED = {8: "int8", 4: "int4"}
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@contextmanager
def enough_memory(workload: Workload, device: torch.device, layout: Layout) -> Iterator[None]:
    """Around what loads the model. Raises `ModelConfigError` with what is needed and what there is: beforehand, or
    when the device runs out all the same."""
    one, free = _estimate(workload, device, layout), free_bytes(device)
    blocks, known = gib(workload.num_blocks * one.block_bytes), "unknown" if free is None else gib(free)
    _log.info("loading: weights take %s, KV blocks %s; free: %s", gib(one.weight_bytes), blocks, known)
    try:
        if free is not None:
            check_fit(one, workload.num_blocks, free)
        yield
    except DoesNotFitError as error:
        raise ModelConfigError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ModelConfigError(
            f"out of memory while loading: weights take {gib(one.weight_bytes)} and {workload.num_blocks} KV blocks "
            f"{blocks}; {known} was free before"
        ) from error


def _estimate(workload: Workload, device: torch.device, layout: Layout) -> Estimate:
    """Of what lands on this device: one rank's part of a GPU's; all ranks' on a CPU, which they share."""
    dtype = str(workload.dtype).removeprefix("torch.")
    ranks = layout.tensor if device.type == "cuda" else 1
    setup = Setup(_ROUNDED.get(workload.weight_bits, dtype), dtype, workload.block_size, ranks)
    return estimate(read_shape(workload.model_dir), setup)


def free_bytes(device: torch.device, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """What can still be allocated; None where the system does not tell. A container's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [free for free in (_available(meminfo), _left_in_cgroup(cgroup)) if free is not None]
    return min(found, default=None)


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_cgroup(cgroup: Path) -> int | None:
    """Of cgroup v2. Cached files count as used there, and are given up when memory is needed."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has an error of its own for a GPU only.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
