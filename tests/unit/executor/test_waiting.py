"""The lines of those that wait, and whose turn it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contract.engine_contract import request
from weir_executor.paged.sequence import LiveRequest, Sequence
from weir_executor.paged.tenants import FairShare, Tenants
from weir_executor.paged.waiting import WaitingQueue


class Lines:
    def __init__(self, *tenants: str) -> None:
        self.share = FairShare(Tenants())
        self.queue = WaitingQueue(self.share)
        for tenant in tenants:
            self.share.enter(tenant)

    def add(self, key: int, tenant: str = "", priority: int = 0, output_index: int = 0) -> Sequence:
        generation = request(key, [1], tenant=tenant, priority=priority)
        live = LiveRequest(generation, key, frozenset(), shares_blocks=False, submitted_at=0.0)
        sequence = Sequence(live, output_index, [1], [])
        self.queue.add(sequence)
        return sequence

    def keys(self, passed_over: frozenset[str] = frozenset()) -> list[int]:
        return [sequence.live.key for sequence in self.queue.in_order(passed_over)]


def test_priority_then_turn_then_arrival() -> None:
    lines = Lines("a", "b")
    lines.share.charge("a", prompt=1)
    for key, (tenant, priority) in enumerate([("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 7)]):
        lines.add(key, tenant, priority)
    assert lines.keys() == [4, 1, 3, 0, 2]
    assert lines.queue.highest_priority == 7


def test_turns_alternate_as_tenants_are_charged() -> None:
    lines = Lines("a", "b")
    for key in range(8):
        lines.add(key, "a" if key < 4 else "b")
    order = []
    for sequence in lines.queue.in_order():
        order.append(sequence.live.key)
        lines.queue.remove(sequence)
        lines.share.charge(sequence.tenant, prompt=10 if sequence.tenant == "a" else 20)
    assert order == [0, 4, 1, 2, 5, 3, 6, 7]
    assert len(lines.queue) == 0
    assert lines.queue.highest_priority is None


def test_a_tenant_that_is_passed_over_is_passed_over_as_a_whole() -> None:
    lines, passed_over = Lines("a", "b"), set[str]()
    for key in range(6):
        lines.add(key, "ab"[key % 2], priority=key // 4)
    order = []
    for sequence in lines.queue.in_order(passed_over):
        order.append(sequence.live.key)
        passed_over.add("a")
    assert order == [4, 5, 1, 3]


def test_who_comes_back_takes_its_old_place() -> None:
    lines = Lines("")
    first, *_ = (lines.add(key) for key in range(3))
    lines.queue.remove(first)
    assert lines.keys() == [1, 2]
    lines.queue.add(first)
    assert lines.keys() == [0, 1, 2]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.booleans(), st.integers(0, 9)), max_size=30),
)
def test_it_is_the_sorted_list_that_it_stands_for(shapes: list[tuple[str, int, bool, int]]) -> None:
    """Against the plain definition: at each turn, the least of (priority, counter, arrival) that is left."""
    lines = Lines("a", "b", "c")
    left = {lines.add(key, tenant, priority): cost for key, (tenant, priority, _, cost) in enumerate(shapes)}
    stays = {key for key, (_, __, stay, ___) in enumerate(shapes) if stay}
    for sequence in lines.queue.in_order():
        best = min(left, key=lambda s: (-s.priority, lines.share.counter(s.tenant), s.arrival))
        assert sequence is best
        cost = left.pop(sequence)
        if sequence.live.key not in stays:
            lines.queue.remove(sequence)
            lines.share.charge(sequence.tenant, prompt=cost)
    assert not left
    assert {sequence.live.key for sequence in lines.queue} == stays
    assert len(lines.queue) == len(stays)
