"""Which of gRPC's two ways to wait for its sockets a process uses. Chosen before gRPC is imported: it looks once."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

# https://github.com/grpc/grpc/blob/v1.85.0/src/core/lib/experiments/experiments.yaml
_VARIABLE: Final = "GRPC_EXPERIMENTS"
_ONE_POLLER: Final = "-event_engine_client,-event_engine_listener"


def poll_with_one_thread(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sockets are waited for by the thread that waits for calls, and not by gRPC's pool of threads beside it.

    Python computes on one thread, so all that the pool reads is handed on to that one: each message wakes a thread of
    the pool, which wakes gRPC's own, which wakes Python's. Who has set the variable has chosen already.
    """
    environment.setdefault(_VARIABLE, _ONE_POLLER)
