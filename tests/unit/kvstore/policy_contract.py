"""What every eviction policy does, checked against a model of it that is too simple to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hypothesis import strategies as st

from weir_kvstore.policies.policy import EvictionPolicy

Make = Callable[[], EvictionPolicy]


class Model(Protocol):
    """The same in lists that are searched and sorted at every call; nothing is ever forgotten for a bound."""

    def add(self, block_id: int, address: bytes, size_bytes: int) -> None: ...

    def remove(self, block_id: int) -> None: ...

    def touch(self, block_id: int) -> None: ...

    def renew(self, block_id: int) -> None: ...

    def order(self, size_bytes: int, blocks: int) -> list[int]:
        """All that may go, the next first, when so much of it is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One call. Numbers are taken modulo what there is, so that every step can be made."""

    call: str
    number: int
    size_bytes: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["add", "add", "add", "lease", "return", "touch", "touch", "renew", "drop", "evict", "ask"]),
        st.integers(0, 30),
        st.integers(1, 12),
    ),
    max_size=120,
)


class Tier:
    """Calls a policy and its model as a tier would: blocks come, are leased, return, go, and come again."""

    def __init__(self, policy: EvictionPolicy, model: Model) -> None:
        self._both: tuple[EvictionPolicy, Model] = (policy, model)
        self.policy, self.model = policy, model
        self.here: dict[int, tuple[bytes, int]] = {}  # block id → address, bytes
        self.leased: dict[int, tuple[bytes, int]] = {}
        self._next_id = 0

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            getattr(self, f"_{step.call}")(step)
            self.check()

    def check(self) -> None:
        self.policy.check_integrity()
        assert len(self.policy) == len(self.here)
        assert self.policy.size_bytes == sum(size for _, size in self.here.values())
        assert all(block_id in self.policy for block_id in self.here)
        assert not any(block_id in self.policy for block_id in self.leased)

    def victims(self, size_bytes: int, blocks: int) -> list[int] | None:
        """As the policy names them: what the model says, and no longer than need be."""
        named = self.policy.victims(size_bytes=size_bytes, blocks=blocks)
        if size_bytes > self.policy.size_bytes or blocks > len(self.here):
            assert named is None, "nobody goes in vain"
            return None
        assert named is not None
        assert named == self.model.order(size_bytes, blocks)[: len(named)]
        assert self._is_enough(named, size_bytes, blocks)
        assert not named or not self._is_enough(named[:-1], size_bytes, blocks)
        assert named == self.policy.victims(size_bytes=size_bytes, blocks=blocks)
        return named

    def _is_enough(self, named: Sequence[int], size_bytes: int, blocks: int) -> bool:
        return len(named) >= blocks and sum(self.here[block_id][1] for block_id in named) >= size_bytes

    def _add(self, step: Step) -> None:
        address = bytes([step.number])
        if any(held == address for held, _ in (*self.here.values(), *self.leased.values())):
            return  # an address is given once
        self._next_id += 1
        self._enter(self._next_id, address, step.size_bytes)

    def _enter(self, block_id: int, address: bytes, size_bytes: int) -> None:
        self.here[block_id] = (address, size_bytes)
        for each in self._both:
            each.add(block_id, address, size_bytes)

    def _leave(self, block_id: int) -> tuple[bytes, int]:
        for each in self._both:
            each.remove(block_id)
        return self.here.pop(block_id)

    def _lease(self, step: Step) -> None:
        if (block_id := _pick(self.here, step)) is not None:
            self.leased[block_id] = self._leave(block_id)

    def _return(self, step: Step) -> None:
        if (block_id := _pick(self.leased, step)) is not None:
            self._enter(block_id, *self.leased.pop(block_id))

    def _touch(self, step: Step) -> None:
        if (block_id := _pick(self.here, step)) is not None:
            for each in self._both:
                each.touch(block_id)

    def _renew(self, step: Step) -> None:
        if (block_id := _pick({**self.here, **self.leased}, step)) is not None:
            for each in self._both:
                each.renew(block_id)

    def _drop(self, step: Step) -> None:
        """Removed or expired: gone without having been named."""
        if (block_id := _pick(self.here, step)) is not None:
            self._leave(block_id)

    def _evict(self, step: Step) -> None:
        for block_id in self.victims(step.size_bytes, 0) or ():
            self._leave(block_id)

    def _ask(self, step: Step) -> None:
        """More than will go: some of those named are used again before it comes to it."""
        self.victims(step.size_bytes * 2, step.number % 5)


def _pick(blocks: dict[int, tuple[bytes, int]], step: Step) -> int | None:
    return sorted(blocks)[step.number % len(blocks)] if blocks else None


def check_chain_goes_from_its_end(make: Make, lengths: Sequence[int], rounds: int, strangers: int) -> None:
    """A chain grows by pieces, is leased whole several times, and then all has to go: a child always goes first."""
    policy, chain = make(), 0
    for length in lengths:
        new = range(chain, chain + length)
        for block_id in reversed(new):
            policy.add(block_id, b"chain%d" % block_id, 10)
        for block_id in reversed(range(chain)):
            policy.renew(block_id)
        chain += length
    for stranger in range(strangers):
        policy.add(1000 + stranger, b"stranger%d" % stranger, 10)
    for _ in range(rounds):
        _lease(policy, range(chain))
    went = evict_all(policy)
    positions = [went.index(block_id) for block_id in range(chain)]
    assert positions == sorted(positions, reverse=True)


def check_new_block_outlives_no_parent(make: Make) -> None:
    """A prefix that was used long ago and never since goes no sooner than what was put behind it now."""
    policy = make()
    policy.add(0, b"prefix", 10)
    for other in range(1, 20):
        policy.add(other, b"other%d" % other, 10)
    policy.add(100, b"child", 10)
    policy.renew(0)
    went = evict_all(policy)
    assert went.index(100) < went.index(0)


def check_renewed_while_leased(make: Make) -> None:
    """The usual way of a conversation: its prefix is leased for as long as what follows is put."""
    policy = make()
    policy.add(0, b"prefix", 10)
    for other in range(1, 20):
        policy.add(other, b"other%d" % other, 10)
    policy.remove(0)
    policy.add(100, b"child", 10)
    policy.renew(0)
    policy.add(0, b"prefix", 10)
    went = evict_all(policy)
    assert went.index(100) < went.index(0)


def check_unknown_is_not_renewed(make: Make) -> None:
    policy = make()
    policy.renew(7)
    assert (len(policy), 7 in policy) == (0, False)
    policy.check_integrity()


def evict_all(policy: EvictionPolicy) -> list[int]:
    """One by one, as new blocks would push them out."""
    went: list[int] = []
    while len(policy):
        victims = policy.victims(size_bytes=1, blocks=0)
        assert victims is not None
        policy.remove(victims[0])
        went.append(victims[0])
    return went


def _lease(policy: EvictionPolicy, blocks: Sequence[int]) -> None:
    for block_id in blocks:
        policy.remove(block_id)
    for block_id in reversed(blocks):
        policy.add(block_id, b"chain%d" % block_id, 10)
