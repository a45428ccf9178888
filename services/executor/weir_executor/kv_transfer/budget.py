"""Memory that blocks take between the store and the engine. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    @property
    def free_bytes(self) -> int:
        return max(0, self._most_bytes - self.held_bytes)

    def take(self, size_bytes: int) -> Callable[[], None]:
        """Holds so much. Returns what gives it back; calling that again does nothing."""
        self.held_bytes += size_bytes
        left = size_bytes

        def give_back() -> None:
            nonlocal left
            self.held_bytes -= left
            left = 0

        return give_back
