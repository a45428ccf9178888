"""Another kvstore as a tier: what it has of its own, by the contract that every store keeps.

tier     PeerTier: a block's get, put and remove
calls    the calls that each of them takes
pieces   what GetBlocks sends, made whole
"""
