"""Through which routers a request has come, so that it goes round in no circle. Pure.

`weir-via` in a call's metadata: the instance ids of the routers that passed it on, the first one first. A router that
is named there is not given the request again, and nobody passes on what has come through `MAX_ROUTERS`; a request that
may not be passed on is answered by executors and providers, or refused.
"""

from __future__ import annotations

from typing import Final

from weir_chassis.errors import InvalidArgument
from weir_chassis.telemetry import Metadata

VIA_KEY: Final = "weir-via"
# A door, a region, and one region more for what the first has lost.
MAX_ROUTERS: Final = 3
_MAX_BYTES: Final = 1024


def via_from(metadata: Metadata | None) -> tuple[str, ...]:
    """Raises InvalidArgument for what is no list of ids."""
    via = next((value for key, value in metadata or () if key == VIA_KEY), "")
    if not isinstance(via, str) or not via.isprintable() or len(via) > _MAX_BYTES:
        raise InvalidArgument(VIA_KEY, f"must be printable text of at most {_MAX_BYTES} bytes")
    return tuple(part for part in via.split(",") if part)


def via_metadata(via: tuple[str, ...], own: str) -> tuple[tuple[str, str], ...]:
    return ((VIA_KEY, ",".join((*via, own))),)
