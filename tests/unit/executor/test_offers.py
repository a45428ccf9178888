from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.batch import NewBlock
from weir_executor.paged.offers import Offers


def _blocks(count: int, first: int = 0) -> list[NewBlock]:
    return [NewBlock(i, b"hash %d" % i, b"", b"") for i in range(first, first + count)]


def _ids(blocks: list[NewBlock]) -> list[int]:
    return [block.block_id for block in blocks]


def _all(block_id: int, block_hash: bytes) -> bool:
    return True


def _any(block_hash: bytes) -> bool:
    return True


def test_without_a_rate_all_leave_at_once() -> None:
    offers = Offers(None, _all, num_blocks=1000)
    offers.add(_blocks(500))
    assert _ids(offers.take(0.0, _any, busy=True)) == list(range(500))
    assert not offers


def test_while_requests_run_they_leave_at_the_rate_and_in_order() -> None:
    offers = Offers(10.0, _all, num_blocks=1000)
    offers.take(100.0, _any, busy=True)
    offers.add(_blocks(50))
    assert len(offers.take(100.0, _any, busy=True)) == 10  # a second's worth was free
    assert offers.take(100.05, _any, busy=True) == []
    assert _ids(offers.take(100.35, _any, busy=True)) == [10, 11, 12]
    assert offers.take(100.35, _any, busy=True) == []


def test_when_none_runs_the_others_follow_in_portions() -> None:
    offers = Offers(1e-6, _all, num_blocks=1000)
    offers.add(_blocks(70))
    assert len(offers.take(0.0, _any, busy=True)) <= 1
    portions = []
    while offers:
        portions.append(len(offers.take(0.0, _any, busy=False)))
    assert sum(portions) >= 69
    assert max(portions) <= 32


def test_a_block_that_was_given_away_meanwhile_is_not_offered() -> None:
    given_away = {b"hash 1", b"hash 3"}
    offers = Offers(None, lambda _, block_hash: block_hash not in given_away, num_blocks=10)
    offers.add(_blocks(5))
    assert _ids(offers.take(0.0, _any, busy=True)) == [0, 2, 4]
    assert not offers


def test_no_more_wait_than_the_pool_has() -> None:
    offers = Offers(1e-6, _all, num_blocks=4)
    offers.add(_blocks(10))
    assert _ids(offers.take(0.0, _any, busy=False)) == [6, 7, 8, 9]


@given(
    rate=st.floats(0.1, 1000),
    seconds=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=50),
    added=st.integers(0, 20),
)
def test_never_more_than_the_rate_and_a_seconds_worth(rate: float, seconds: list[float], added: int) -> None:
    offers, now, taken, given_in = Offers(rate, _all, num_blocks=10_000), 1000.0, [], 0
    for step in seconds:
        offers.add(_blocks(added, first=given_in))
        given_in += added
        taken += _ids(offers.take(now, _any, busy=True))
        now += step
    assert taken == list(range(len(taken)))
    assert len(taken) <= (now - 1000.0) * rate + max(1.0, rate) + 1e-6


def test_what_nobody_wants_is_passed_over_and_takes_no_room_of_the_others() -> None:
    offers = Offers(10.0, _all, num_blocks=1000)
    offers.take(100.0, _any, busy=True)
    offers.add(_blocks(50))
    stored = {b"hash %d" % i for i in range(20)}
    assert _ids(offers.take(100.0, lambda block_hash: block_hash not in stored, busy=True)) == list(range(20, 30))
