"""Moves KV blocks between the engine and the kvstore service, never on the engine's thread.

    submit ─▶ plan ─▶ load   who shares a load, how many there are, what memory they take            loader.py
                      fetch  MatchPrefix → decide → GetBlocks, verified, in time → `stored_prefix`   fetch.py
                             what pays, when to give up: race.py; what things take                   predictor.py
    step   ─▶ offer ─▶ put   full blocks → bounded queue → PutBlocks                                 writer.py
                             all through a `BlockTransport`: by reference where the store is on this host and shares
                             its memory (arena_transport.py), by value elsewhere (grpc_transport.py)

The store is an optimisation: slow, wrong or gone, it costs a request at most a short deadline, and a dead one costs
nothing, because a breaker stands before it.
"""

from weir_executor.kv_transfer.arena_transport import ArenaTransport
from weir_executor.kv_transfer.plan import HeldPrefix, LoaderLimits, LoadPlan
from weir_executor.kv_transfer.transfer import KvTransfer, TransferLimits
from weir_executor.kv_transfer.writer import WriterLimits

__all__ = ["ArenaTransport", "HeldPrefix", "KvTransfer", "LoadPlan", "LoaderLimits", "TransferLimits", "WriterLimits"]
