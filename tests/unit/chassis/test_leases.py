from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases


def test_a_lease_counts_until_it_is_released() -> None:
    ledger = LeaseLedger()
    slot, place = ledger.acquire("slot", "r1"), ledger.acquire("queue_place", "r1")
    assert ledger.counts() == {"slot": 1, "queue_place": 1}
    assert slot.release()
    assert not slot.release(), "the second release is not one"
    assert ledger.counts() == {"queue_place": 1}
    place.release()
    assert_no_leases(ledger)


async def test_cancellation_releases() -> None:
    ledger = LeaseLedger()

    async def work() -> None:
        with ledger.acquire("slot", "r1"):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    assert ledger.counts() == {"slot": 1}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_no_leases(ledger)


async def test_expiry() -> None:
    clock, ended = VirtualClock(), list[str]()
    ledger = LeaseLedger(clock)
    short = ledger.acquire("block", "a", expires_after=5, on_release=lambda: ended.append("a"))
    kept = ledger.acquire("block", "b", expires_after=5)
    ledger.acquire("block", "c").release()
    await clock.advance(4)
    kept.renew(5)
    assert ledger.expire() == ()
    await clock.advance(1)
    assert ledger.expire() == (short,)
    assert ended == ["a"]
    assert not short.live
    assert kept.live
    await clock.advance(4)
    assert ledger.expire() == (kept,)
    assert_no_leases(ledger)


def test_release_owner_takes_everything_of_one() -> None:
    ledger = LeaseLedger()
    for _ in range(3):
        ledger.acquire("slot", "r1")
    other = ledger.acquire("slot", "r2")
    assert ledger.release_owner("r1") == 3
    assert ledger.release_owner("r1") == 0
    assert ledger.live() == (other,)


def test_on_release_runs_once() -> None:
    runs: list[int] = []
    with LeaseLedger().acquire("slot", "r", on_release=lambda: runs.append(1)) as lease:
        lease.release()
    assert runs == [1]


def test_each_kind_is_shown_once_with_what_tells_its_number_ever_after() -> None:
    shown: list[tuple[str, Callable[[], int]]] = []
    ledger = LeaseLedger(observe=lambda kind, count: shown.append((kind, count)))
    with ledger.acquire("slot", "r"), ledger.acquire("slot", "r"), ledger.acquire("place", "r"):
        assert [(kind, count()) for kind, count in shown] == [("slot", 2), ("place", 1)]
    with ledger.acquire("slot", "r"):
        assert [(kind, count()) for kind, count in shown] == [("slot", 1), ("place", 0)]


def test_assert_no_leases_names_what_is_held() -> None:
    ledger = LeaseLedger()
    ledger.acquire("slot", "request-7")
    with pytest.raises(AssertionError, match="request-7"):
        assert_no_leases(ledger)


@given(st.lists(st.tuples(st.sampled_from(["slot", "block"]), st.integers(0, 3), st.booleans()), max_size=60))
def test_the_books_always_balance(steps: list[tuple[str, int, bool]]) -> None:
    ledger = LeaseLedger()
    for kind, owner, takes in steps:
        if takes:
            ledger.acquire(kind, str(owner))
        elif ledger.held_by(str(owner)):
            ledger.held_by(str(owner))[0].release()
        ledger.check_integrity()
    for owner in range(4):
        ledger.release_owner(str(owner))
    assert_no_leases(ledger)
