"""Ports for services that bind them a moment later, and again when they have died."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from weir_local.placement import HOST

# Below it are the ports of services that people know.
_FIRST = 10_000
# From where on the system gives ports to connections and to whoever asks for any; this is Linux's default, and other
# systems begin above it.
_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
_GIVEN_AWAY_FROM = 32_768


class FreePorts:
    """Each call gives another port that nobody has, and none that the system may give away before it is bound.

    Else the connection of whoever waits for a service could be given the service's own port.
    """

    def __init__(self, end: int | None = None):
        """`end`: where the system's own begin; unset: as it says."""
        end = _system_ports_from() if end is None else end
        # From anywhere on, so that two stacks that start at once hardly meet.
        start = random.randrange(_FIRST, end) if end > _FIRST else end
        self._candidates: Iterator[int] = chain(range(start, end), range(_FIRST, start))

    def __call__(self) -> int:
        for port in self._candidates:
            if _is_free(port):
                return port
        return _any_port()


def _system_ports_from() -> int:
    try:
        return int(_GIVEN_AWAY.read_text().split()[0])
    except OSError:
        return _GIVEN_AWAY_FROM


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: an old connection is no listener
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    """Where the system has taken all of them for itself."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
