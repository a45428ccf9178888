"""The door between the callers and the step thread, from both sides."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from contract.engine_contract import prompt, request
from weir_chassis.errors import AlreadyExists, Draining, Overloaded, WeirError, WorkerLost
from weir_executor.engine import EngineLoad
from weir_executor.paged.door import Abort, Door, Release
from weir_executor.paged.sequence import LiveRequest
from weir_executor.step_output import RequestEnd


def _load(waiting: int = 0) -> EngineLoad:
    return EngineLoad(0, waiting, 0, 8, 8, 0, 0, 0, 0.0)


def _live(key: int) -> Callable[[int], LiveRequest]:
    return lambda arrival: LiveRequest(request(key, prompt(4)), arrival, frozenset(), False, submitted_at=0.0)


@pytest.fixture
def door() -> Door:
    return Door(3, _load())


def test_what_is_asked_comes_in_order_and_once(door: Door) -> None:
    door.enter(7, _live(7))
    door.abort(7, None)
    door.enter(8, _live(8))
    door.release(5)
    door.abort(6, 0)  # not live: it may have just ended
    first, abort, second, release = door.take_in()
    assert isinstance(first, LiveRequest)
    assert isinstance(second, LiveRequest)
    assert [(live.key, live.arrival) for live in (first, second)] == [(7, 1), (8, 2)]
    assert (abort, release) == (Abort(7, None), Release(5))
    assert door.lives() == [first, second]
    assert not list(door.take_in())


def test_requests_count_as_waiting_until_the_step_that_took_them_in_has_shown_its_load(door: Door) -> None:
    for key in range(3):
        door.enter(key, _live(key))
    assert door.load().waiting_requests == 3
    door.take_in()
    assert door.load().waiting_requests == 3
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        door.enter(9, _live(9))
    door.show(_load(waiting=1))
    door.enter(9, _live(9))
    assert door.load().waiting_requests == 2


def test_a_key_is_free_again_when_its_request_is_forgotten(door: Door) -> None:
    door.enter(1, _live(1))
    with pytest.raises(AlreadyExists):
        door.enter(1, _live(1))
    door.take_in()
    assert door.forget([RequestEnd(1, 4, 0, 0, 0)])
    door.enter(1, _live(1))


@pytest.mark.parametrize("failed", [False, True])
def test_a_closed_door_says_why(door: Door, failed: bool) -> None:
    door.close()
    expected: type[WeirError] = Draining
    if failed:
        door.fail(MemoryError())
        expected = WorkerLost
    with pytest.raises(expected):
        door.enter(1, _live(1))
    assert isinstance(door.error, MemoryError) is failed
    assert not door.lives()


def test_all_end_once_and_nothing_is_asked_after_that(door: Door) -> None:
    door.enter(1, _live(1))
    lives = door.end()
    assert lives is not None
    assert [live.key for live in lives] == [1]
    assert door.end() is None
    assert not door.forget([RequestEnd(1, 4, 0, 0, 0)]), "a step thread that was given up has nothing to say"
    door.abort(1, None)
    door.release(1)
    assert not list(door.take_in())
    assert door.load().waiting_requests == 0


@pytest.mark.parametrize(
    ("wake", "goes_on"),
    [
        (lambda door: door.enter(1, _live(1)), True),
        (lambda door: door.release(1), True),
        (lambda door: door.close(), False),
    ],
)
def test_the_step_thread_sleeps_until_something_is_asked(
    door: Door, wake: Callable[[Door], None], goes_on: bool
) -> None:
    asleep, woke = threading.Event(), list[bool]()

    def has_work() -> bool:
        asleep.set()
        return False

    thread = threading.Thread(target=lambda: woke.append(door.await_work(has_work, None)))
    thread.start()
    assert asleep.wait(10)
    wake(door)
    thread.join(10)
    assert woke == [goes_on]


def test_it_does_not_sleep_while_there_is_work_or_beyond_its_time(door: Door) -> None:
    assert door.await_work(lambda: True, None)
    assert door.await_work(lambda: False, 0.0)
    assert not door.closes_within(0.0)
    door.close()
    assert door.closes_within(10.0)
    assert not door.await_work(lambda: True, None)


def test_a_ring_makes_it_look_for_work(door: Door) -> None:
    asleep, work = threading.Event(), list[int]()

    def has_work() -> bool:
        asleep.set()
        return bool(work)

    thread = threading.Thread(target=door.await_work, args=(has_work, None))
    thread.start()
    assert asleep.wait(10)
    work.append(1)
    door.ring()
    thread.join(10)
    assert not thread.is_alive()
