"""How often Python looks for objects that only refer to each other."""

from __future__ import annotations

import gc
from typing import Final

# Objects that are made between two searches. With Python's own 700 a service that answers a thousand requests a second
# searches several hundred times a second, and finds nothing: what requests leave is mostly freed at once.
_OBJECTS_BETWEEN_SEARCHES: Final = 20_000


def search_less_for_cycles() -> None:
    """What is there by now, which is what was imported, stays for good and is not searched any more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_SEARCHES)
