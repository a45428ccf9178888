"""gRPC without a wire: all servicers in one process, behind the same stubs, interceptors and rules.

    stub ── InMemoryChannel ── Exchange ── InMemoryServer ── interceptors ── servicer
            calls (client)     two bounded   context (server)
                               pipes, one status

Calls behave as on loopback: flow control, deadlines, cancellation both ways, metadata, statuses with their details.
One conformance suite runs against both. What differs: messages are passed by reference, so **a message that was sent
is never changed afterwards** by either side; `wait_for_ready`, compression and credentials are ignored.
"""

from weir_chassis.inmemory.channel import InMemoryChannel, connector
from weir_chassis.inmemory.server import InMemoryServer

__all__ = ["InMemoryChannel", "InMemoryServer", "connector"]
