"""The chassis: what a service needs in order to be one. No tokens, no models; of blocks, who says to hold which.

server        a service's life, and the `Chassis` it is handed      stopping, calls, background, health
interceptors  around each call: telemetry, errors, deadline    errors, fault_table, telemetry, trace, metrics, deadline
observed      a call, or a request on a stream, as it is counted and logged
channel       the way to other services                              limits, inmemory, slow_consumer
settings      the environment, once, loudly
leases        what is held, and that it is given back
drain_rate    when a refused caller should come back                 rate
clock         time, passed in                                      durations
broker        the seam to what carries messages that are no calls    nats, nats_credentials
fleet         what a process says of itself
event_log     what something holds, as a log that can be followed    kv_events
probe         a service's health, as a container engine asks for it
testing       the doubles
"""

import os

# Before gRPC is imported, which looks then. After a fork it would start its threads anew in the child, before that has
# become another program, and one child in some forty then ends by SIGSEGV. uvloop starts programs by a fork (Python's
# own loop by a vfork, which gRPC does not hear of). No child of ours uses its parent's gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Logs are lines of JSON. Without this gRPC writes its own between them, for a connection that has ended for instance.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# Sockets are waited for by the thread that waits for calls, and not by gRPC's pool of threads beside it. Python
# computes on one thread, so all that the pool reads is handed on to that one: each message wakes a thread of the pool,
# which wakes gRPC's own, which wakes Python's.
# https://github.com/grpc/grpc/blob/v1.85.0/src/core/lib/experiments/experiments.yaml
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
