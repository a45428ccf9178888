"""Buffers of whole blocks come and go with every read: what is freed is used again, and not given back first."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_REUSED_BYTES: Final = 32 * 1024 * 1024  # glibc takes no more
_KEPT_BYTES: Final = (
    64 * 1024 * 1024
)  # free memory that stays with the process: a batch of usual blocks, and a few copies


def keep_freed() -> None:
    """Once or often. Where malloc is not glibc's, nothing happens.

    The kernel clears each page that it hands out, which takes longer than to receive it: 1 MiB blocks came from a Redis
    on the same machine at 0.8 GB/s, and come at 1.6.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
