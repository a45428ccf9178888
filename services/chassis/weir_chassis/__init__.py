"""The chassis: what a service needs in order to be one. No tokens, no models; of blocks, who says to hold which.

server        a service's life, and the `Chassis` it is handed      stopping, calls, background, health
interceptors  around each call: telemetry, errors, deadline          errors, telemetry, trace, metrics, deadline
channel       the way to other services                              limits, inmemory
settings      the environment, once, loudly
leases        what is held, and that it is given back
drain_rate    when a refused caller should come back                 rate
clock         time, passed in
broker        the seam to what carries messages that are no calls    nats
fleet         what a process says of itself
event_log     what something holds, as a log that can be followed    kv_events
testing       the doubles
"""
