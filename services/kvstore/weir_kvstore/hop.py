"""A store that asks another one says so, and whoever is asked so answers from its own tiers: nothing goes in circles.

The same holds for what is put: a block that came from a store is not handed on to one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from weir_kvstore.record import Address

KEY: Final = "weir-kv-hop"
MARK: Final = ((KEY, "1"),)
# Some 200 bytes each. Whoever came before these has mostly been offered to slower tiers already.
_REMEMBERED: Final = 65_536


def is_marked(context: Any) -> bool:
    """Whether this call comes from another store."""
    return any(key == KEY for key, _ in context.invocation_metadata() or ())


class Arrivals:
    """The blocks that came from another store, the oldest forgotten first."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._addresses: OrderedDict[Address, None] = OrderedDict()

    def __contains__(self, address: Address) -> bool:
        return address in self._addresses

    def add(self, address: Address) -> None:
        self._addresses[address] = None
        self._addresses.move_to_end(address)
        if len(self._addresses) > self._remembered:
            self._addresses.popitem(last=False)
