"""The tier that hosts share, in a real Redis (6.2 or newer).

    tier        RedisTier: what a block's get, put and remove are in commands
    layout      the names of keys, and the value of a block: its record and its payload in one
    books       who is charged what and who goes next: `books.lua`, one atomic step per call
    upkeep      in the background: blocks that were used, and books that no longer agree with what is there
    fetch       values that are asked for together come over together
    replies     what the server answers then, each value received into memory of its own
    connection  redis-py's, which receives them there

The connections are `weir_chassis/redis.py`, their time limits and a breaker `weir_chassis/store_link.py`.
Nothing here is imported, and neither is the client library, unless such a tier is configured.
"""
