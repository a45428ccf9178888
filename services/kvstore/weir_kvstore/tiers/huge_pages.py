"""Huge pages that an administrator has set aside: a directory on a mount of hugetlbfs, and the pool behind it.

Shared memory has 4 KiB pages on most hosts, and mapping them one by one is slower than copying what is in them. A file
here has pages of 2 MiB or more. Mapping it reserves all of them or fails, so whoever has it mapped never meets one that
is not there, and they are never swapped. See the kernel's admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MAGIC: Final = 0x958458F6  # linux/magic.h
_POOLS: Final = Path("/sys/kernel/mm/hugepages")
KIB: Final = 1024


class HugePagesError(OSError):
    """There is no arena to be had where huge pages were asked for. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages of one size, in this machine or of a container's share of it."""

    page_bytes: int
    total: int  # nr_hugepages
    free: int  # that nobody has, nor has been promised


def page_bytes(directory: Path) -> int | None:
    """Of the huge pages that files there are made of; None: it has none, or is not there."""
    if sys.platform != "linux":
        return None
    found = (ctypes.c_long * 32)()  # struct statfs: f_type, f_bsize, …
    if _LIBC.statfs(os.fsencode(directory), found) or found[0] != _MAGIC:
        return None
    return int(found[1])


def read_pool(size_bytes: int, pools: Path = _POOLS) -> Pool:
    """As the kernel counts them now; zeros where it does not say."""
    directory = pools / f"hugepages-{size_bytes // KIB}kB"

    def count(name: str) -> int:
        try:
            return int((directory / name).read_text())
        except (OSError, ValueError):
            return 0

    overcommit = max(0, count("nr_overcommit_hugepages") - count("surplus_hugepages"))
    free = count("free_hugepages") - count("resv_hugepages") + overcommit
    return Pool(size_bytes, count("nr_hugepages"), max(0, free))


def refusal(directory: Path, arena_bytes: int, pool: Pool, reason: str) -> str:
    """What was wanted, what there is, and what to do. Pure."""
    wanted = -(-arena_bytes // pool.page_bytes)
    setting = f"{_POOLS}/hugepages-{pool.page_bytes // KIB}kB/nr_hugepages"
    more = pool.total + wanted - pool.free
    remedy = f"write {more} to {setting}, " if wanted > pool.free else ""
    return (
        f"WEIR_KVSTORE_ARENA_DIR: no arena in {directory}: {reason}; {wanted} huge pages of "
        f"{pool.page_bytes // KIB} KiB are wanted (the capacity, and an eighth more), {pool.free} of {pool.total} "
        f"(nr_hugepages) are free: {remedy}"
        "lower WEIR_KVSTORE_CAPACITY_BYTES (max_bytes of RAM in the file of tiers), or name another directory"
    )
