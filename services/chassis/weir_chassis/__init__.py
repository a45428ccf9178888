"""The chassis: what a service needs in order to be one. No tokens, no models, no blocks enter here.

server        a service's life, and the `Chassis` it is handed      stopping, calls, background, health
interceptors  around each call: telemetry, errors, deadline          errors, telemetry, trace, metrics, deadline
channel       the way to other services                              limits, inmemory
settings      the environment, once, loudly
leases        what is held, and that it is given back
drain_rate    when a refused caller should come back
clock         time, passed in
broker        the seam to what carries messages that are no calls          nats
testing       the doubles
"""
