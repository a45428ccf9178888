"""Drafts through whole steps, over the fake's arithmetic: tokens never change, and nothing is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from contract.engine_contract import Listener, hashes, is_idle, prompt, request
from weir_chassis.errors import Internal, InvalidArgument, Unsupported
from weir_executor.fake import FakeEngine, FakeEngineConfig, next_token
from weir_executor.paged.batch import Batch
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.paged.speculation.proposer import Wish
from weir_executor.paged.worker import NotFiniteError
from weir_executor.request import GenerationRequest, Sampling, SpeculationMode
from weir_executor.step_output import FinishReason, RequestEnd

_NGRAM = SpeculationMode.NGRAM
_ALWAYS = SpeculationOptions(mode=_NGRAM, max_draft_tokens=6, adaptive=False)


class _Guesser:
    """Knows the fake, and tells the truth as often as it is told to."""

    def __init__(self, config: FakeEngineConfig, truth: float) -> None:
        self._config, self._truth, self._dice = config, truth, random.Random(5)
        self.wishes: list[int] = []

    def note(self, batch: Batch) -> None:
        assert batch.num_tokens <= self._config.max_batched_tokens

    def propose(self, wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        self.wishes += [wish.most for wish in wishes]
        return [[self._guess(wish, ahead) for ahead in range(wish.most)] for wish in wishes]

    def seconds_per_draft(self) -> float | None:
        return None

    def _guess(self, wish: Wish, ahead: int) -> int:
        true = next_token(wish.row.sequence, self._config, ahead)
        return true if self._dice.random() < self._truth else self._dice.randrange(3, 300)


def _engine(truth: float = 0.7, options: SpeculationOptions = _ALWAYS, **limits: Any) -> tuple[FakeEngine, _Guesser]:
    config = FakeEngineConfig(**{"check_integrity": True, "speculation": options, **limits})
    engine, guesser = FakeEngine(config), _Guesser(config, truth)
    engine._loop._drafter._proposers[_NGRAM] = guesser
    return engine, guesser


def _run(engine: FakeEngine, requests: Sequence[GenerationRequest]) -> tuple[Listener, list[RequestEnd]]:
    heard = Listener()
    engine.start(heard)
    for generation in requests:
        engine.submit(generation)
    ends = heard.wait_for_ends(*(generation.key for generation in requests))
    deadline = time.monotonic() + 10
    while not is_idle(engine.load()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert is_idle(engine.load()), engine.load()
    engine.check_health()
    engine.close()
    assert not heard.wrongs, heard.wrongs[:3]
    return heard, ends


def _requests() -> list[GenerationRequest]:
    """Of many kinds, some with and some without."""
    requests = []
    for key in range(12):
        token_ids = prompt(5 + 7 * key, start=key)
        fields: dict[str, Any] = {
            "n": 1 + key % 3,
            "sampling": Sampling(temperature=key % 2, seed=key, top_logprobs=2 if key % 4 == 0 else None),
            "ignore_eos": key % 3 == 0,
            "min_tokens": key,
            "block_hashes": hashes(token_ids, 16) if key % 2 else (),
            "speculation": SpeculationMode.OFF if key % 4 == 3 else None,
            "resumed": {0: [7, 8, 9]} if key % 5 == 0 else {},
        }
        requests.append(request(key, token_ids, 40, **fields))
    return requests


@pytest.mark.parametrize(("truth", "share"), [(0.0, (0, 0.02)), (0.6, (0.1, 0.4)), (1.0, (0.8, 1))])
@pytest.mark.parametrize("num_blocks", [12, 400], ids=["preempting", "roomy"])
def test_tokens_are_those_without_drafts(truth: float, share: tuple[float, float], num_blocks: int) -> None:
    limits: dict[str, Any] = {"num_blocks": num_blocks, "max_num_seqs": 10, "max_batched_tokens": 64, "eos_after": 25}
    plain, plain_ends = _run(_engine(options=SpeculationOptions(), **limits)[0], _requests())
    heard, ends = _run(_engine(truth, **limits)[0], _requests())
    assert heard.tokens == plain.tokens
    assert heard.logprobs == plain.logprobs
    assert {place: output.finish_reason for place, output in heard.finished.items()} == {
        place: output.finish_reason for place, output in plain.finished.items()
    }
    assert [end.completion_tokens for end in ends] == [end.completion_tokens for end in plain_ends]
    assert bool(sum(end.preemptions for end in ends)) == (num_blocks == 12)
    assert all(end.draft_tokens == 0 for end in plain_ends)
    drafted, accepted = sum(end.draft_tokens for end in ends), sum(end.accepted_draft_tokens for end in ends)
    assert share[0] <= accepted / drafted <= share[1]
    assert all(end.draft_tokens == 0 for end in ends if end.key % 4 == 3)


def test_accepted_drafts_are_counted_and_save_steps() -> None:
    """A prefill draws one token, and each step of six right guesses seven more."""
    engine, guesser = _engine(truth=1.0)
    heard, (end,) = _run(engine, [request(1, prompt(10), 29)])
    assert (end.completion_tokens, end.draft_tokens, end.accepted_draft_tokens) == (29, 24, 24)
    assert engine.load().step == 5
    assert guesser.wishes == [6, 6, 6, 6]
    assert len(heard.tokens[1, 0]) == 29


def test_no_draft_goes_beyond_max_tokens() -> None:
    engine, guesser = _engine(truth=1.0, max_model_len=20)
    _, (end,) = _run(engine, [request(1, prompt(10), 10)])
    assert guesser.wishes == [6, 1]
    assert (end.draft_tokens, end.accepted_draft_tokens) == (7, 7)
    engine, guesser = _engine(truth=1.0)
    assert _run(engine, [request(1, prompt(10), 2)])[1][0].draft_tokens == 0
    assert guesser.wishes == []


def test_what_was_drafted_beyond_a_stop_is_dropped() -> None:
    engine, _ = _engine(truth=1.0, eos_after=4)
    heard, (end,) = _run(engine, [request(1, prompt(10), 29, ignore_eos=False)])
    assert len(heard.tokens[1, 0]) == end.completion_tokens == 5
    assert heard.finished[1, 0].finish_reason is FinishReason.STOP
    assert heard.finished[1, 0].stop_token_id == 2
    assert (end.draft_tokens, end.accepted_draft_tokens) == (6, 4)


@pytest.mark.parametrize("budget", [4, 5, 7])
def test_drafts_take_what_is_left_of_the_steps_tokens(budget: int) -> None:
    engine, guesser = _engine(truth=1.0, max_num_seqs=4, max_batched_tokens=budget)
    plain, _ = _run(FakeEngine(), [request(key, prompt(3, start=key), 20) for key in range(4)])
    heard, ends = _run(engine, [request(key, prompt(3, start=key), 20) for key in range(4)])
    assert heard.tokens == plain.tokens
    assert max(guesser.wishes, default=0) <= budget - 1
    assert all(end.preemptions == 0 for end in ends)


def test_a_request_sets_its_own_length_and_mode() -> None:
    engine, guesser = _engine(truth=1.0, options=SpeculationOptions(adaptive=False))
    asked = request(1, prompt(10), 9, speculation=_NGRAM, max_draft_tokens=2)
    _, ends = _run(engine, [asked, request(2, prompt(10), 9)])
    assert guesser.wishes == [2, 2, 1]
    assert [end.draft_tokens for end in ends] == [5, 0]


def test_what_is_not_here_is_refused() -> None:
    engine, _ = _engine()
    assert engine.info.speculation_modes == (_NGRAM,)
    with pytest.raises(Unsupported, match="draft_model is not among off, ngram"):
        engine.submit(request(1, prompt(4), speculation=SpeculationMode.DRAFT_MODEL))
    for count in (0, 17):
        with pytest.raises(InvalidArgument, match="between 1 and 16"):
            engine.submit(request(1, prompt(4), speculation=_NGRAM, max_draft_tokens=count))
    engine.close()


def test_under_load_it_is_off_by_itself_and_on_again_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose time is all in their tokens: drafts half of which fail would only delay the neighbours."""
    options = SpeculationOptions(mode=_NGRAM, max_draft_tokens=4)
    engine, guesser = _engine(0.5, options, num_blocks=2000, max_num_seqs=64)
    observe = engine._loop._drafter._meter.observe
    monkeypatch.setattr(engine._loop._drafter, "observe_step", lambda count, _: observe(count, 16e-3 + count * 1e-3))
    heard = Listener()
    engine.start(heard)
    engine.submit(request(0, prompt(10), 60))
    heard.wait_for_ends(0)
    alone = len(guesser.wishes)
    assert alone > 10
    for key in range(1, 65):
        engine.submit(request(key, prompt(10, start=key), 60))
    heard.wait_for_ends(*range(1, 65))
    together = len(guesser.wishes) - alone
    assert together / 64 < alone / 10, "a tenth of what each had alone"
    engine.submit(request(99, prompt(10), 60))
    heard.wait_for_ends(99)
    assert len(guesser.wishes) - alone - together > 10
    engine.close()


def test_a_proposer_that_fails_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, guesser = _engine()
    calls = []

    def fail(wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        calls.append(len(wishes))
        raise MemoryError("no room for a draft")

    monkeypatch.setattr(guesser, "propose", fail)
    heard, (end,) = _run(engine, [request(1, prompt(10), 20)])
    assert (end.error, len(heard.tokens[1, 0]), len(calls)) == (None, 20, 1)


def test_a_row_that_fails_with_drafts_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been a draft that was wrong. What is wrong without any is an error."""
    engine, _ = _engine()
    cleared: list[int] = []
    monkeypatch.setattr(engine._loop._worker, "clear_blocks", cleared.extend)
    run = engine._loop._worker.run

    def poisoned(batch: Batch) -> Sequence[Any]:
        return [
            NotFiniteError() if row.draft_token_ids else result
            for row, result in zip(batch.scheduled, run(batch), strict=True)
        ]

    monkeypatch.setattr(engine._loop._worker, "run", poisoned)
    heard, (end,) = _run(engine, [request(1, prompt(10), 20)])
    plain, _ = _run(FakeEngine(), [request(1, prompt(10), 20)])
    assert heard.tokens == plain.tokens
    assert (end.error, end.draft_tokens, end.preemptions, len(cleared)) == (None, 0, 1, 2)


def test_two_thousand_random_operations_leave_nothing_behind() -> None:
    dice, heard = random.Random(11), Listener()
    engine, _ = _engine(0.8, num_blocks=24, max_num_seqs=6, max_waiting=40, max_batched_tokens=48)
    engine.start(heard)
    submitted, failed_at = list[int](), 0
    for key in range(2000):
        action = dice.random()
        if action < 0.6 or not submitted:
            tokens = prompt(dice.randint(1, 120), start=dice.randint(0, 3))
            known = hashes(tokens, 16) if dice.random() < 0.7 else ()
            mode = dice.choice((None, _NGRAM, SpeculationMode.OFF))
            fields: dict[str, Any] = {"n": dice.randint(1, 3), "block_hashes": known, "speculation": mode}
            try:
                engine.submit(request(key, tokens, dice.randint(1, 40), **fields))
                submitted.append(key)
            except Exception:
                time.sleep(0.002)
        elif action < 0.97:
            engine.abort(dice.choice(submitted[-30:]), dice.choice((None, None, 0, 1)))
        elif action < 0.985:
            # Five in a row end the engine, and a loop that got no core meanwhile would see them so.
            if engine.load().step > failed_at:
                engine.fail_step()
                failed_at = engine.load().step + 1
        else:
            engine.fail_request(submitted[-1], Internal("told to"))
    heard.wait_for_ends(*submitted)
    deadline = time.monotonic() + 10
    while not is_idle(engine.load()) and time.monotonic() < deadline:
        time.sleep(0.001)
    engine.check_health()
    engine.close()
    assert is_idle(engine.load()), engine.load()
    assert not heard.wrongs, heard.wrongs[:3]
    assert sum(end.accepted_draft_tokens for end in heard.ends.values()) > 100
