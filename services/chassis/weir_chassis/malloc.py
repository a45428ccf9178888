"""How this process's C library keeps memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

# mallopt(3), of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that it takes for the second: larger ones come from the kernel, and go back to it.
_MAX_KEPT_BYTES: Final = 32 * 1024 * 1024
# What may lie idle at the end of the heap: the messages of a few streams.
_IDLE_BYTES: Final = 256 * 1024 * 1024


def keep_freed_memory() -> None:
    """Memory of messages is used again by the next ones, instead of being given back to the kernel each time.

    Whoever gets a mebibyte anew waits for the kernel to clear it, which takes longer than to fill it; streams of chunks
    get several a millisecond. Where there is another C library nothing happens.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _IDLE_BYTES)
