"""Memory of this process's own for blocks that are copied out of an arena, used again and again.

Fresh memory costs more to get than to fill: the kernel clears every page before it gives it.
"""

from __future__ import annotations

import weakref
from collections import deque
from threading import Lock
from typing import Final

from weir_chassis.mapped_memory import MappedMemory, private_memory

# Buffers are of a few sizes only, so that one that is idle fits the next who asks.
_UNIT_BYTES: Final = 4 * 1024 * 1024
# What a node that loads nothing more keeps for the next time.
_IDLE_BYTES: Final = 256 * 1024 * 1024


class Buffer:
    """Writable through `memory`; what is cut from it keeps it, and it is used again when the last cut is gone."""

    def __init__(self, memory: MappedMemory) -> None:
        self.memory = memory
        self._view = memory.view()

    @property
    def owner(self) -> object:
        """Lives as long as this buffer or a cut of it."""
        return self._view.obj

    def cut(self, offset: int, size_bytes: int) -> memoryview:
        """Read-only."""
        return self._view[offset : offset + size_bytes].toreadonly()


class PrivateBuffers:
    """Gives buffers and takes them back by itself. Any thread."""

    def __init__(self, idle_bytes: int = _IDLE_BYTES) -> None:
        self._max_idle_bytes = idle_bytes
        self._lock = Lock()  # guards the two below
        self._idle: deque[MappedMemory] = deque()  # the one that came back first is dropped first
        self._idle_bytes = 0

    @property
    def idle_bytes(self) -> int:
        return self._idle_bytes

    def take(self, size_bytes: int) -> Buffer:
        """At least so long, mapped already."""
        wanted = -(-size_bytes // _UNIT_BYTES) * _UNIT_BYTES
        memory = self._find(wanted)
        if memory is None:
            memory = private_memory(wanted)
            memory.populate(0, wanted)
        buffer = Buffer(memory)
        weakref.finalize(buffer.owner, self._give_back, memory)
        return buffer

    def _find(self, size_bytes: int) -> MappedMemory | None:
        with self._lock:
            for memory in self._idle:
                if size_bytes <= len(memory) <= 2 * size_bytes:
                    self._idle.remove(memory)
                    self._idle_bytes -= len(memory)
                    return memory
        return None

    def _give_back(self, memory: MappedMemory) -> None:
        with self._lock:
            self._idle.append(memory)
            self._idle_bytes += len(memory)
            while self._idle_bytes > self._max_idle_bytes:
                self._idle_bytes -= len(self._idle.popleft())
