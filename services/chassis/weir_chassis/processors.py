"""The processors on which a service stays, as its operator says: what `taskset --cpu-list` does from outside.

A service that computes on one thread, as a router does, is quickest on one: what comes in is read by a thread of gRPC's
and handed to Python's, and between two processors that costs a wake-up of the other one each time. An executor is kept
so beside its GPU, or out of its neighbours' way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from weir_chassis.settings import ServiceSettings, SettingsError, variable_of


def stay_on_processors(settings: ServiceSettings) -> None:
    """Before any thread is started: each stays where the one stays that starts it.

    Raises SettingsError where that cannot be, naming the processors that this process may use.
    """
    if not settings.processors:
        return
    variable, wanted = variable_of(type(settings), "processors"), frozenset(_numbers(settings.processors))
    if not hasattr(os, "sched_setaffinity"):
        raise SettingsError(f"{variable}: this system does not keep a process on processors")
    allowed = os.sched_getaffinity(0)
    if not wanted <= allowed:
        told = ",".join(map(str, sorted(allowed)))
        raise SettingsError(f"{variable}={settings.processors!r}: this process may use {told}")
    os.sched_setaffinity(0, wanted)


def _numbers(text: str) -> Iterator[int]:
    """Of a list that is well formed."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
