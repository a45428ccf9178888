"""Channels to other services, opened one way everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from weir_chassis.limits import client_options
from weir_chassis.telemetry import call_metadata

__all__ = ["Connect", "call_metadata", "cancelling", "open_channel"]

C = TypeVar("C", bound=grpc.aio.RpcContext)

# How a service reaches another. Passed in, so that one process can hold several services: see `inmemory.connector`.
Connect = Callable[[str], grpc.aio.Channel]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel of its own connection, with keepalive, 64 MiB messages, quick reconnects and no retries by gRPC.

    Needs a running event loop; the caller closes it. Calls take `metadata=call_metadata()` to carry the request on.
    """
    assert address, "a channel needs an address"
    return grpc.aio.insecure_channel(address, options=client_options())


@contextmanager
def cancelling(call: C) -> Iterator[C]:
    """Ends the call when left, however that happens: `with cancelling(stub.Generate(…)) as call:`.

    A stream that is merely dropped lives on in gRPC, and its handler works for nobody. Cancelling a finished call does
    nothing.
    """
    try:
        yield call
    finally:
        call.cancel()
