"""Mapped memory that is moved in bulk: what Python's mmap does not do, and without the GIL."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# mmap(2), madvise(2), mlock2(2); Python's mmap module knows none of them.
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_MADV_POPULATE_WRITE: Final = 23
_MLOCK_ONFAULT: Final = 1


class MappedMemory:
    """A range of bytes that stays where it is for as long as this object or a view of it lives. Any thread."""

    def __init__(self, mapping: mmap.mmap) -> None:
        """The mapping is writable, and nobody closes it."""
        self._mapping = mapping
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        with suppress(OSError, AttributeError):  # a kernel without huge pages, or no Linux
            mapping.madvise(mmap.MADV_HUGEPAGE)

    def __len__(self) -> int:
        return len(self._mapping)

    def view(self) -> memoryview:
        """All of it. While the view or a slice of it lives, so does an object of its own, for `weakref.finalize`."""
        return memoryview((ctypes.c_ubyte * len(self)).from_buffer(self._mapping)).cast("B")

    def populate(self, start: int, size_bytes: int) -> bool:
        """Maps these bytes to real memory, so that nobody waits for it later.

        False: that cannot be, because there is no memory or because the kernel does not know how.
        """
        self._check(start, size_bytes)
        first = start - start % mmap.PAGESIZE
        length = start + size_bytes - first
        return self._call("madvise", first, length, _MADV_POPULATE_WRITE) == 0

    def pin(self) -> bool:
        """Never swaps out what was touched, if this process may say so."""
        return self._call("mlock2", 0, len(self), _MLOCK_ONFAULT) == 0

    def address(self, offset: int, size_bytes: int) -> int:
        """Where so many bytes from there on lie, for native code. Whoever uses it keeps this object."""
        self._check(offset, size_bytes)
        return self._address + offset

    def copy_in(self, offset: int, payload: bytes) -> None:
        ctypes.memmove(self.address(offset, len(payload)), payload, len(payload))

    def copy_from(self, offset: int, source: MappedMemory, source_offset: int, size_bytes: int) -> None:
        ctypes.memmove(self.address(offset, size_bytes), source.address(source_offset, size_bytes), size_bytes)

    def _check(self, offset: int, size_bytes: int) -> None:
        assert 0 <= offset <= offset + size_bytes <= len(self), (offset, size_bytes, len(self))

    def _call(self, name: str, start: int, length: int, flag: int) -> int:
        function = getattr(_LIBC, name, None)
        if function is None:
            return -1
        return int(function(ctypes.c_void_p(self._address + start), ctypes.c_size_t(length), flag))


def private_memory(size_bytes: int) -> MappedMemory:
    """Nobody else's, and no memory until it is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return MappedMemory(mmap.mmap(-1, size_bytes, flags=flags))
