"""A trace played to a policy, as the store would: what is missing is computed and put, and room is made by the policy.

Every block counts as one byte, and the capacity is in blocks: which policy keeps the right ones does not depend on how
large they are. Tenants have one order among them all, so that it is the policies that are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from weir_kvstore.block import Block, State
from weir_kvstore.index import Index
from weir_kvstore.policies.make import POLICIES, PolicyName
from weir_kvstore.record import Address, Record
from weir_kvstore.replay.trace import Lookup
from weir_kvstore.tenants import Take

_ALL = ""  # the one tenant of a replay


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy came to with one capacity, in blocks."""

    policy: PolicyName
    capacity: int
    lookups: int  # blocks asked for
    hits: int  # of them, those at the beginning of their chain that were held
    evicted: int

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0


def replay_all(
    trace: Sequence[Lookup], capacities: Iterable[int], policies: Collection[PolicyName] = tuple(POLICIES)
) -> Iterator[Result]:
    """Every policy at every capacity."""
    for capacity in capacities:
        for policy in policies:
            yield replay(trace, policy, capacity)


def replay(trace: Iterable[Lookup], policy: PolicyName, capacity: int) -> Result:
    store = _Store(policy, capacity)
    for lookup in trace:
        store.serve(lookup)
    return Result(policy, capacity, store.lookups, store.hits, store.evicted)


def distinct_blocks(trace: Iterable[Lookup]) -> int:
    """What a store that never evicts would hold in the end."""
    return len({(lookup.namespace, block_hash) for lookup in trace for block_hash in lookup.chain})


class _Store:
    """The index of a tier without its bytes."""

    def __init__(self, policy: PolicyName, capacity: int) -> None:
        assert capacity > 0, capacity
        self._index = Index(POLICIES[policy])
        self._capacity = capacity
        self.lookups = self.hits = self.evicted = 0

    def serve(self, lookup: Lookup) -> None:
        """Leases what is held, computes the rest, puts it, and gives the lease back."""
        chain = lookup.chain
        held = _leading(self._index.lookup(lookup.namespace, chain))
        self.lookups += len(chain)
        self.hits += len(held)
        self._index.refer(held)
        self._put(lookup.namespace, chain, len(held))
        self._index.release(held)

    def _put(self, namespace: bytes, chain: Sequence[bytes], begin: int) -> None:
        """The blocks from the `begin`-th on, as far as room can be made."""
        reserved: list[Block] = []
        parents = [b"", *chain]
        for number in range(begin, len(chain)):
            address = Address(namespace, chain[number])
            if self._index.find(address) is not None:
                continue  # its beginning had gone, and it had not
            if not self._make_room():
                break
            reserved.append(self._index.reserve(Record(address, parents[number], 1, 0, _ALL), "replay"))
        self._index.publish(reserved)
        for block in reserved:
            if block.state is State.RESERVED:  # twice in one chain, which a trace from elsewhere may have
                self._index.discard(block)

    def _make_room(self) -> bool:
        lacking = len(self._index) + 1 - self._capacity
        if lacking <= 0:
            return True
        victims = self._index.victims([Take(_ALL, lacking, 0)])
        for block in victims or ():
            self._index.hide(block, State.REMOVED)
        self.evicted += len(victims or ())
        return victims is not None


def _leading(found: Iterable[Block | None]) -> list[Block]:
    return [block for block in takewhile(bool, found) if block is not None]
