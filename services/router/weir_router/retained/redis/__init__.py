"""Streams that routers share through one Redis (6.2 or newer).

    logs       `logs.lua`, one atomic step per call: who runs a stream, what it has said, who reads it
    streams    what is run here is told as it grows, what is run elsewhere is followed, and taken over from the dead
    made       both, as the settings say

Nothing here is imported, and neither is the client library, unless a REDIS_URL is set.
"""
