"""The step loop's faults, ends and limits, over the fake's arithmetic."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace

import pytest

from contract.engine_contract import Listener, hashes, is_idle, prompt, request
from weir_chassis.errors import DataCorrupt, Draining, Internal, QuotaExceeded, WorkerLost
from weir_executor.fake import FakeDeviceError, FakeEngine, FakeEngineConfig
from weir_executor.paged import step_loop
from weir_executor.paged.batch import Batch
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.paged.worker import Result
from weir_executor.step_output import BlockRemoved, BlockStored


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(FakeEngineConfig(num_blocks=64, max_num_seqs=4, check_integrity=True))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_exception_in_a_step_fails_its_requests_and_the_loop_goes_on(fake: FakeEngine) -> None:
    heard = Listener()
    fake.fail_step(ValueError("a bad kernel"))
    fake.submit(request(1, prompt(20), 5))
    fake.submit(request(2, prompt(20), 5, n=2))
    fake.start(heard)
    for end in heard.wait_for_ends(1, 2):
        assert isinstance(end.error, Internal)
        assert "ValueError" in end.error.message
    fake.submit(request(1, prompt(20), 5))
    assert heard.wait_for_ends(1)[0]
    fake.check_health()
    _until(lambda: is_idle(fake.load()))
    fake.close()


def test_after_a_failed_step_a_small_request_goes_first(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, keys = Listener(), list[list[int]]()
    compute = fake._fake.run

    def run(batch: Batch) -> Items[Result]:
        keys.append([scheduled.sequence.live.key for scheduled in batch.scheduled])
        return compute(batch)

    monkeypatch.setattr(fake._fake, "run", run)
    fake.fail_step()
    for key in range(5):  # one more than run at once
        fake.submit(request(key, prompt(20), 1))
    fake.start(heard)
    assert [end.error is None for end in heard.wait_for_ends(*range(5))] == [False] * 4 + [True]
    assert keys == [[0, 1, 2, 3], [-1], [-1], [-1], [4]]
    fake.close()


def test_a_worker_that_fails_its_self_tests_is_given_up(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_executor.paged.watched_worker._SECONDS_BETWEEN_FAILURES", 0.001)
    heard, steps = Listener(), list[object]()

    def run(batch: Batch) -> Items[Result]:
        steps.append(batch)
        raise MemoryError

    monkeypatch.setattr(fake._fake, "run", run)
    for key in range(5):
        fake.submit(request(key, prompt(20), 5))
    fake.start(heard)
    ends = heard.wait_for_ends(*range(5))
    assert [type(end.error) for end in ends] == [Internal] * 4 + [WorkerLost]
    assert len(steps) == 5
    _until(lambda: not fake._loop._thread.is_alive())
    with pytest.raises(Internal, match="5 steps in a row"):
        fake.check_health()
    fake.close()


def test_steps_that_all_fail_give_the_worker_up_though_its_self_tests_succeed(fake: FakeEngine) -> None:
    heard = Listener()
    fake.start(heard)
    for key in range(5):
        fake.fail_step()
        fake.submit(request(key, prompt(4), 5))
        heard.wait_for_ends(key)
    _until(lambda: not fake._loop._thread.is_alive())
    with pytest.raises(Internal, match="5 steps in a row"):
        fake.check_health()
    fake.close()


def test_a_step_that_succeeds_forgives_those_that_failed(fake: FakeEngine) -> None:
    heard = Listener()
    fake.start(heard)
    for key in range(0, 24, 2):
        fake.fail_step()
        fake.submit(request(key, prompt(4), 1))
        heard.wait_for_ends(key)
        fake.submit(request(key + 1, prompt(4), 1))
        assert heard.wait_for_ends(key + 1)[0].error is None
    fake.check_health()
    fake.close()


def test_it_warms_up_before_start_returns_and_says_what_stands_against_it() -> None:
    warm = FakeEngine(FakeEngineConfig(warm_up=True))
    warm.start(Listener())
    assert (warm.load().step, warm.load().free_blocks) == (0, warm.load().total_blocks)
    warm.close()
    cold = FakeEngine(FakeEngineConfig(warm_up=True))
    cold.fail_step(ValueError("no such kernel"))
    with pytest.raises(ValueError, match="no such kernel"):
        cold.start(Listener())
    cold.close()


def test_a_warm_up_that_hangs_does_not_hang_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_loop, "_WARM_UP_SECONDS", 0.02)
    engine = FakeEngine(FakeEngineConfig(warm_up=True))
    engine.hang()
    with pytest.raises(Internal, match="not warmed up"):
        engine.start(Listener())
    engine.close()


def test_a_cancellation_in_a_step_is_seen_before_the_next(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in steps: none computes a token for a request after its `abort`, whenever in a step that comes."""
    heard, compute = Listener(), fake._fake.run
    dice, aborted, late = random.Random(3), set[int](), list[int]()

    def run(batch: Batch) -> Items[Result]:
        keys = [scheduled.sequence.live.key for scheduled in batch.scheduled]
        late.extend(aborted.intersection(keys))
        if dice.random() < 0.2:
            aborted.add(key := dice.choice(keys))
            fake.abort(key)
        return compute(batch)

    monkeypatch.setattr(fake._fake, "run", run)
    for key in range(200):
        fake.submit(request(key, prompt(20), 50))
    fake.start(heard)
    heard.wait_for_ends(*range(200))
    assert len(aborted) > 100
    assert not late
    fake.close()


def test_progress_counts_tokens_once_and_ends(fake: FakeEngine) -> None:
    heard = Listener()
    for key in range(4):  # more than the pool holds, so that some are preempted and computed again
        fake.submit(request(key, prompt(200), 100))
    fake.start(heard)
    heard.wait_for_ends(*range(4))
    _until(lambda: is_idle(fake.load()))
    assert fake.load().preemptions > 0
    assert fake.load().progress == 4 * (200 + 100 - 1) + 4
    fake.close()


def test_the_failed_requests_blocks_hold_no_prefix(fake: FakeEngine) -> None:
    heard, tokens = Listener(), prompt(50)
    fake.fail_step()
    fake.submit(request(1, tokens, 5, block_hashes=hashes(tokens, 16)))
    fake.start(heard)
    heard.wait_for_ends(1)
    assert fake.cached_prefix_blocks(hashes(tokens, 16)) == 0
    fake.close()


def test_an_error_of_one_request_leaves_the_others(fake: FakeEngine) -> None:
    heard = Listener()
    fake.fail_request(1, DataCorrupt("not a number"))
    fake.submit(request(1, prompt(20), 5, n=3))
    fake.submit(request(2, prompt(20), 5))
    fake.start(heard)
    first, second = heard.wait_for_ends(1, 2)
    assert isinstance(first.error, DataCorrupt)
    assert (second.error, second.completion_tokens) == (None, 5)
    _until(lambda: is_idle(fake.load()))
    assert not heard.wrongs
    fake.close()


def test_what_could_never_fit_its_tenants_blocks_is_refused() -> None:
    fake = FakeEngine(FakeEngineConfig(num_blocks=64, tenants=Tenants({"acme": TenantLimits(max_blocks=4)})))
    with pytest.raises(QuotaExceeded, match=r"'acme': a sequence of 65 tokens needs 5 blocks, the limit is 4"):
        fake.submit(request(1, prompt(60), 6, tenant="acme"))
    fake.submit(request(1, prompt(60), 5, tenant="acme"))
    fake.submit(request(2, prompt(60), 6))
    heard = Listener()
    fake.start(heard)
    assert [end.completion_tokens for end in heard.wait_for_ends(1, 2)] == [5, 6]
    fake.close()


def test_chunks_shrink_until_decodes_come_at_the_rate_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that takes a millisecond for each token, by a clock of its own."""
    now, slowest = [0.0], list[float]()
    config = FakeEngineConfig(num_blocks=600, max_num_seqs=4, max_batched_tokens=128, itl_target_seconds=0.04)
    fake = FakeEngine(config)
    monkeypatch.setattr(fake._loop, "_options", replace(fake._loop._options, clock=lambda: now[0]))
    compute = fake._fake.run

    def run(batch: Batch) -> Items[Result]:
        now[0] += 0.001 * batch.num_tokens
        if any(scheduled.sequence.num_generated for scheduled in batch.scheduled):
            slowest.append(0.001 * batch.num_tokens)
        return compute(batch)

    monkeypatch.setattr(fake._fake, "run", run)
    heard = Listener()
    fake.submit(request(0, prompt(4), 200))
    for key in range(1, 4):
        fake.submit(request(key, prompt(1500, start=key), 2))
    fake.start(heard)
    heard.wait_for_ends(*range(4))
    _until(lambda: is_idle(fake.load()))
    assert max(slowest[:3]) > 0.1, "it begins with large steps"
    assert max(slowest[5:]) < 0.045
    assert 16 <= fake.load().chunk_tokens <= 44
    fake.close()


def test_a_fatal_error_ends_everything_and_shows_in_health(fake: FakeEngine) -> None:
    heard = Listener()
    fake.die()
    for key in range(6):
        fake.submit(request(key, prompt(20), 5))
    fake.start(heard)
    assert all(isinstance(end.error, WorkerLost) for end in heard.wait_for_ends(*range(6)))
    with pytest.raises(FakeDeviceError):
        fake.check_health()
    with pytest.raises(WorkerLost):
        fake.submit(request(9, prompt(20), 5))
    fake.close()
    assert len(heard.ends) == 6


def test_a_hang_shows_as_a_step_count_that_stands_still(fake: FakeEngine) -> None:
    heard = Listener()
    fake.start(heard)
    fake.hang()
    fake.submit(request(1, prompt(20), 5))
    _until(lambda: fake.load().waiting_requests == 1)
    time.sleep(0.02)
    assert fake.load().step == 0
    fake.check_health()  # slow is not broken: who watches the steps decides
    fake.resume()
    assert heard.wait_for_ends(1)[0].error is None
    fake.close()


def test_close_does_not_wait_for_ever_for_a_hung_step(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step thread is left behind in its device call; what it says when it comes back is no longer heard."""
    monkeypatch.setattr(step_loop, "_JOIN_SECONDS", 0.05)
    stuck, entered = threading.Event(), threading.Event()

    def run(batch: object) -> list[Result]:
        entered.set()
        stuck.wait()
        return [[]]

    monkeypatch.setattr(fake._fake, "run", run)
    heard = Listener()
    fake.start(heard)
    fake.submit(request(1, prompt(20), 5))
    entered.wait()
    fake.close()
    (end,) = heard.wait_for_ends(1)
    assert isinstance(end.error, WorkerLost)
    stuck.set()
    fake._loop._thread.join()
    assert not heard.wrongs
    assert len(heard.ends) == 1


def test_a_listener_that_raises_stops_the_engine_and_shows(fake: FakeEngine) -> None:
    def deaf(_: object) -> None:
        raise LookupError("nobody here")

    fake.start(deaf)
    fake.submit(request(1, prompt(4), 5))
    fake._loop._thread.join(10)
    with pytest.raises(LookupError):
        fake.check_health()
    fake.close()


def test_close_before_start_and_without_work(fake: FakeEngine) -> None:
    fake.submit(request(1, prompt(4), 5))
    fake.close()
    with pytest.raises(Draining):
        fake.submit(request(2, prompt(4), 5))
    fake.check_health()


def test_an_idle_loop_does_not_step(fake: FakeEngine) -> None:
    heard = Listener()
    fake.start(heard)
    fake.submit(request(1, prompt(4), 5))
    heard.wait_for_ends(1)
    _until(lambda: is_idle(fake.load()))
    steps = fake.load().step
    time.sleep(0.02)
    assert fake.load().step == steps
    fake.close()


def test_an_idle_loop_forgets_blocks_that_are_over_their_time() -> None:
    fake = FakeEngine(FakeEngineConfig(num_blocks=64, kv_ttl_seconds=0.05, check_integrity=True))
    heard, events = Listener(), list[object]()
    heard.on_step = lambda step: events.extend(step.kv_events)
    fake.start(heard)
    chain = hashes(prompt(40), 16)
    fake.submit(request(1, prompt(40), 1, block_hashes=chain))
    heard.wait_for_ends(1)
    _until(lambda: len(events) == 2)
    assert events == [BlockStored(tuple(chain), b""), BlockRemoved(tuple(reversed(chain)))]
    _until(lambda: fake.load().cached_blocks == 0)
    assert fake.cached_prefix_blocks(chain) == 0
    assert fake.load().free_blocks == 64
    fake.close()


def test_seconds_are_those_of_the_clock(fake: FakeEngine) -> None:
    heard = Listener()
    fake.set_step_seconds(0.01)
    fake.start(heard)
    fake.submit(request(1, prompt(4), 4))
    (end,) = heard.wait_for_ends(1)
    assert end.prefill_seconds >= 0.01
    assert end.decode_seconds >= 0.03
    assert 0 <= end.queue_seconds < 60
    fake.close()


def test_thousands_of_random_operations_leave_nothing_behind() -> None:
    """Submits, aborts of requests and outputs, failures of steps and requests, over a pool that is always too small."""
    dice, heard = random.Random(20_240_607), Listener()
    fake = FakeEngine(
        FakeEngineConfig(num_blocks=24, max_num_seqs=6, max_waiting=40, max_batched_tokens=48, check_integrity=True)
    )
    fake.start(heard)
    refused, submitted, failed_at = 0, list[int](), 0
    for key in range(20_000):  # on a busy machine more of them are refused
        if len(submitted) == 1000:
            break
        action = dice.random()
        if action < 0.6:
            tokens = prompt(dice.randint(1, 120), start=dice.randint(0, 3))
            known = hashes(tokens, 16) if dice.random() < 0.7 else ()
            try:
                fake.submit(
                    request(
                        key,
                        tokens,
                        dice.randint(1, 40),
                        n=dice.randint(1, 3),
                        block_hashes=known,
                        priority=dice.randint(0, 2),
                    )
                )
                submitted.append(key)
            except Exception:
                refused += 1
                time.sleep(0.002)
        elif submitted and action < 0.97:
            fake.abort(dice.choice(submitted[-30:]), dice.choice((None, None, 0, 1)))
        elif action < 0.985:
            # Five in a row end the engine, and a loop that got no core meanwhile would see them so.
            if fake.load().step > failed_at:
                fake.fail_step()
                failed_at = fake.load().step + 1
        elif submitted:
            fake.fail_request(submitted[-1], Internal("told to"))
    heard.wait_for_ends(*submitted)
    _until(lambda: is_idle(fake.load()))
    fake.check_health()
    fake.close()
    assert not heard.wrongs, heard.wrongs[:3]
    assert heard.ends.keys() == set(submitted)
    assert len(submitted) == 1000
    assert fake.load().preemptions > 0
