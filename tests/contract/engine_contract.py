"""What every `Engine` promises, as checks. Subclass `EngineContract` in a test module and say how an engine is made."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from weir.kvstore.v1.block_hash import block_hashes
from weir_chassis.errors import AlreadyExists, InvalidArgument, Overloaded, PromptTooLong, WeirError
from weir_executor.engine import Engine, EngineLoad
from weir_executor.request import GenerationRequest, Pooling, PoolingKind, Sampling, StoredPrefix
from weir_executor.step_output import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    FinishReason,
    FullBlock,
    RequestEnd,
    StepOutput,
    TokenLogprobs,
    TokenOutput,
)

_PATIENCE_SECONDS = 90.0
ROOT = b"contract tests.."
GREEDY = Sampling(temperature=0.0)
SEEDED = Sampling(temperature=1.0, seed=1234)


class Listener:
    """Hears every step and holds the engine to its word while doing so: order, indices, ends."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.first_index: dict[tuple[int, int], int] = {}
        self.logprobs: dict[tuple[int, int], list[TokenLogprobs]] = defaultdict(list)
        self.finished: dict[tuple[int, int], TokenOutput] = {}
        self.ends: dict[int, RequestEnd] = {}
        self.full_blocks: list[FullBlock] = []
        self.stored: set[bytes] = set()
        self.wrongs: list[str] = []
        self.on_step: Callable[[StepOutput], None] = lambda _: None
        self._changed = threading.Condition()

    def __call__(self, step: StepOutput) -> None:
        with self._changed:
            for output in step.outputs:
                self._hear_output(output)
            for end in step.ended:
                if end.key in self.ends:
                    self.wrongs.append(f"request {end.key} ended twice")
                self.ends[end.key] = end
            self.full_blocks += step.full_blocks
            for event in step.kv_events:
                self._hear_event(event)
            self._changed.notify_all()
        self.on_step(step)

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, _PATIENCE_SECONDS), f"still waiting for {what}"

    def wait_for_ends(self, *keys: int) -> list[RequestEnd]:
        self.wait_for(lambda: set(keys) <= self.ends.keys(), f"the ends of {keys}")
        return [self.ends[key] for key in keys]

    def _hear_output(self, output: TokenOutput) -> None:
        place = (output.key, output.output_index)
        first = self.first_index.setdefault(place, output.first_token_index)
        if output.first_token_index != first + len(self.tokens[place]):
            self.wrongs.append(f"a gap or a repetition: {output}")
        if output.key in self.ends or place in self.finished:
            self.wrongs.append(f"words after the last word: {output}")
        if output.logprobs and len(output.logprobs) != len(output.token_ids):
            self.wrongs.append(f"log-probabilities of other tokens: {output}")
        self.tokens[place] += output.token_ids
        self.logprobs[place] += output.logprobs
        if output.finish_reason is not None:
            self.finished[place] = output

    def _hear_event(self, event: object) -> None:
        if isinstance(event, BlockStored):
            if self.stored & set(event.block_hashes):
                self.wrongs.append(f"stored twice: {event}")
            self.stored |= set(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            if not set(event.block_hashes) <= self.stored:
                self.wrongs.append(f"removed and never stored: {event}")
            self.stored -= set(event.block_hashes)
        elif isinstance(event, AllBlocksCleared):
            self.stored.clear()


def prompt(length: int, *, start: int = 3, vocab_size: int = 300) -> list[int]:
    """Token ids that never repeat a short pattern, so that no two prompts share a block by accident."""
    return [3 + (start * 31 + i * i + 7 * i) % (vocab_size - 3) for i in range(length)]


def hashes(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    return block_hashes(ROOT, token_ids, block_size)


def request(key: int, token_ids: Sequence[int], max_tokens: int = 8, **fields: Any) -> GenerationRequest:
    """Greedy and deaf to EOS unless told otherwise, so that lengths are known."""
    defaults: dict[str, Any] = {"sampling": GREEDY, "ignore_eos": True}
    return GenerationRequest(key=key, token_ids=token_ids, max_tokens=max_tokens, **{**defaults, **fields})


def pooled(
    key: int, token_ids: Sequence[int], kind: PoolingKind = PoolingKind.LAST, **fields: Any
) -> GenerationRequest:
    """A request for one vector of length 1."""
    return request(key, token_ids, 0, pooling=Pooling(kind), **fields)


def is_idle(load: EngineLoad) -> bool:
    counts = (load.waiting_requests, load.running_sequences, load.outstanding_tokens)
    return counts == (0, 0, 0) and load.free_blocks == load.total_blocks


class EngineContract:
    """Each test makes its own engine, and ends with every block back in the pool and every request ended once."""

    # What an engine may be without: vectors, prompts for other engines, blocks that we may read and write, pushing out
    # what runs, draws that depend on seed and place alone, a logit bias, stop tokens that wait for `min_tokens`. A test
    # of what an engine lacks is skipped, and says so.
    pools = hands_off = shows_blocks = preempts = position_keyed = biases = holds_back_stops = True

    @pytest.fixture(autouse=True)
    def _only_what_it_has(self, request: pytest.FixtureRequest) -> None:
        for marker in request.node.iter_markers("needs"):
            if not getattr(self, marker.args[0]):
                pytest.skip(f"this engine has it not: {marker.args[0]}")

    def make_engine(self, **limits: Any) -> Engine:
        """An engine not yet started, whose vocabulary holds at least 300 tokens and whose block size is 16.

        `limits`: num_blocks, max_num_seqs, max_batched_tokens, max_waiting, prefix_cache, emit_full_blocks.
        """
        raise NotImplementedError

    def make_slow_engine(self, **limits: Any) -> Engine:
        """As `make_engine`, of which each step takes so long that a call meets it in the middle of 25."""
        return self.make_engine(**limits)

    @contextmanager
    def running(self, *, slow: bool = False, **limits: Any) -> Iterator[tuple[Engine, Listener]]:
        engine, heard = (self.make_slow_engine if slow else self.make_engine)(**limits), Listener()
        engine.start(heard)
        try:
            yield engine, heard
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not is_idle(engine.load()) and time.monotonic() < deadline:
                time.sleep(0.001)
            engine.check_health()
            assert is_idle(engine.load()), engine.load()
            assert not heard.wrongs, heard.wrongs
        finally:
            engine.close()

    def tokens_of(self, generation: GenerationRequest, **limits: Any) -> list[list[int]]:
        """What a request yields alone in an engine of its own, one list per output, resumed tokens not included."""
        with self.running(**limits) as (engine, heard):
            engine.submit(generation)
            (end,) = heard.wait_for_ends(generation.key)
            assert end.error is None, end.error
            return [heard.tokens[generation.key, index] for index in range(generation.n)]

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_tokens_come_in_order_and_stop_at_max_tokens(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(20), max_tokens=9))
            (end,) = heard.wait_for_ends(1)
            assert heard.first_index[1, 0] == 0
            assert len(heard.tokens[1, 0]) == 9
            assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH
            assert (end.prompt_tokens, end.completion_tokens, end.error) == (20, 9, None)
            assert min(end.queue_seconds, end.prefill_seconds, end.decode_seconds) >= 0

    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
    def test_a_request_yields_the_same_alone_and_among_others(self, sampling: Sampling) -> None:
        wanted = [self.tokens_of(request(k, prompt(5 + 9 * k, start=k), 12, sampling=sampling)) for k in range(5)]
        with self.running(max_batched_tokens=24, max_num_seqs=4) as (engine, heard):
            for k in range(5):
                engine.submit(request(k, prompt(5 + 9 * k, start=k), 12, sampling=sampling))
            heard.wait_for_ends(*range(5))
            assert [[heard.tokens[k, 0]] for k in range(5)] == wanted

    def test_every_submit_ends_exactly_once(self) -> None:
        with self.running(max_num_seqs=4, num_blocks=32) as (engine, heard):
            for key in range(30):
                engine.submit(request(key, prompt(1 + key, start=key), 1 + key % 7, n=1 + key % 3))
            ends = heard.wait_for_ends(*range(30))
            assert all(end.error is None for end in ends)
            assert [end.completion_tokens for end in ends] == [(1 + k % 7) * (1 + k % 3) for k in range(30)]

    def test_outputs_of_one_request_differ_by_their_index_only(self) -> None:
        three = self.tokens_of(request(1, prompt(40), 10, n=3, sampling=SEEDED))
        two = self.tokens_of(request(9, prompt(40), 10, n=2, sampling=SEEDED))
        assert three[:2] == two
        assert three[0] != three[1] != three[2]

    @pytest.mark.needs("preempts")
    def test_preemption_does_not_show(self) -> None:
        wanted = [self.tokens_of(request(k, prompt(20, start=k), 40, sampling=SEEDED))[0] for k in range(4)]
        with self.running(num_blocks=8, max_num_seqs=4) as (engine, heard):
            for k in range(4):
                engine.submit(request(k, prompt(20, start=k), 40, sampling=SEEDED))
            ends = heard.wait_for_ends(*range(4))
            assert [heard.tokens[k, 0] for k in range(4)] == wanted
            assert sum(end.preemptions for end in ends) > 0
            assert engine.load().preemptions == sum(end.preemptions for end in ends)

    def test_higher_priority_goes_first(self) -> None:
        with self.running(max_num_seqs=1) as (engine, heard):
            order: list[int] = []
            heard.on_step = lambda step: order.extend(end.key for end in step.ended)
            engine.submit(request(0, prompt(4), 100))
            engine.submit(request(1, prompt(4), 2, priority=0))
            engine.submit(request(2, prompt(4), 2, priority=5))
            heard.wait_for_ends(0, 1, 2)
            assert order in ([0, 2, 1], [2, 0, 1])

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_stop_token_ends_the_output_and_is_part_of_it(self) -> None:
        (tokens,) = self.tokens_of(request(1, prompt(12), 16, sampling=SEEDED))
        stop = tokens[6]
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(12), 16, sampling=SEEDED, stop_token_ids=frozenset({stop})))
            heard.wait_for_ends(1)
            assert heard.tokens[1, 0] == tokens[: tokens.index(stop) + 1]
            assert heard.finished[1, 0].finish_reason is FinishReason.STOP
            assert heard.finished[1, 0].stop_token_id == stop

    @pytest.mark.needs("holds_back_stops")
    def test_no_stop_token_is_drawn_before_min_tokens(self) -> None:
        (tokens,) = self.tokens_of(request(1, prompt(12), 16, sampling=SEEDED))
        stops = frozenset(tokens[:4])
        (delayed,) = self.tokens_of(request(1, prompt(12), 16, sampling=SEEDED, stop_token_ids=stops, min_tokens=10))
        assert len(delayed) >= 10
        assert not stops & set(delayed[:10])

    @pytest.mark.needs("biases")
    def test_eos_ends_an_output_unless_ignored(self) -> None:
        with self.running() as (engine, heard):
            (eos,) = engine.info.eos_token_ids
            certain = Sampling(temperature=1.0, logit_bias={eos: 100.0})
            engine.submit(request(1, prompt(12), 6, sampling=certain, ignore_eos=False))
            engine.submit(request(2, prompt(12), 6, sampling=certain, ignore_eos=True))
            engine.submit(request(3, prompt(12), 6, sampling=certain, ignore_eos=False, min_tokens=4))
            heard.wait_for_ends(1, 2, 3)
            assert heard.tokens[1, 0] == [eos]
            assert heard.finished[1, 0].stop_token_id == eos
            assert heard.tokens[2, 0] == [eos] * 6
            assert heard.finished[2, 0].finish_reason is FinishReason.LENGTH
            assert heard.tokens[3, 0].index(eos) == 4

    # ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        "sampling",
        [GREEDY, pytest.param(SEEDED, marks=pytest.mark.needs("position_keyed"))],
        ids=["greedy", "seeded"],
    )
    @pytest.mark.parametrize("cut", [1, 7, 13])
    def test_a_resumed_output_goes_on_as_if_undisturbed(self, sampling: Sampling, cut: int) -> None:
        (whole,) = self.tokens_of(request(1, prompt(30), 14, sampling=sampling))
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(30), 14, sampling=sampling, resumed={0: whole[:cut]}))
            (end,) = heard.wait_for_ends(1)
            assert heard.first_index[1, 0] == cut
            assert heard.tokens[1, 0] == whole[cut:]
            assert end.completion_tokens == 14 - cut

    @pytest.mark.needs("position_keyed")
    def test_outputs_resume_each_from_its_own_place(self) -> None:
        whole = self.tokens_of(request(1, prompt(30), 14, n=3, sampling=SEEDED))
        resumed = {0: whole[0][:3], 2: whole[2][:10]}
        rest = self.tokens_of(request(1, prompt(30), 14, n=3, sampling=SEEDED, resumed=resumed))
        assert rest == [whole[0][3:], whole[1], whole[2][10:]]

    def test_a_resumed_output_that_was_over_ends_at_once(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(30), 3, resumed={0: [5, 6, 7]}))
            engine.submit(request(2, prompt(30), 9, resumed={0: [5, 6]}, stop_token_ids=frozenset({6})))
            heard.wait_for_ends(1, 2)
            assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH
            assert heard.finished[2, 0].finish_reason is FinishReason.STOP
            assert heard.finished[2, 0].stop_token_id == 6
            assert heard.finished[1, 0].first_token_index == 3
            assert heard.tokens == {(1, 0): [], (2, 0): []}

    # ── handing off ───────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.needs("hands_off")
    @pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
    @pytest.mark.parametrize(("length", "n"), [(5, 1), (48, 1), (50, 3)])
    def test_what_is_handed_off_goes_on_elsewhere_as_if_undisturbed(
        self, sampling: Sampling, length: int, n: int
    ) -> None:
        asked = request(1, prompt(length), 12, n=n, sampling=sampling, block_hashes=hashes(prompt(length), 16))
        if length < 16 and sampling is SEEDED and not self.position_keyed:
            pytest.skip("without a block there is nothing to hand over, and this engine draws anew")
        whole = self.tokens_of(asked)
        with self.running() as (first, heard), self.running() as (second, taker):
            first.submit(replace(asked, hand_off=True))
            (end,) = heard.wait_for_ends(1)
            assert not heard.finished
            assert (end.completion_tokens, end.held_blocks) == (n, length // 16)
            self._wait_for(lambda: first.load().held_blocks >= length // 16)
            begun = {index: heard.tokens[1, index] for index in range(n)}
            second.submit(replace(asked, resumed=begun, **self._to_go_on_with(first, end)))
            (end,) = taker.wait_for_ends(1)
            first.release_held(1)
            assert (end.error, end.loaded_prompt_tokens) == (None, length // 16 * 16)
            assert end.completion_tokens == n * 11
            assert [[*begun[index], *taker.tokens[1, index]] for index in range(n)] == whole

    def _to_go_on_with(self, engine: Engine, end: RequestEnd) -> dict[str, Any]:
        """What the next engine is told: blocks, or where to fetch them."""
        if end.handed_state:
            return {"handed_state": end.handed_state}
        payloads = engine.read_held(end.key, 0, end.held_blocks) if end.held_blocks else []
        assert payloads is not None
        return {"stored_prefix": StoredPrefix(0, payloads)}

    @pytest.mark.needs("hands_off")
    def test_an_output_that_is_over_by_its_first_token_is_not_handed_off(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(40), 1, hand_off=True, block_hashes=hashes(prompt(40), 16)))
            (end,) = heard.wait_for_ends(1)
            assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH
            assert end.held_blocks is None
            stops = frozenset(range(engine.info.vocab_size))
            engine.submit(request(2, prompt(40), 9, n=2, hand_off=True, stop_token_ids=stops))
            (end,) = heard.wait_for_ends(2)
            assert {output.finish_reason for output in heard.finished.values()} >= {FinishReason.STOP}
            assert end.held_blocks is None

    @pytest.mark.needs("shows_blocks")
    def test_what_was_released_or_never_held_cannot_be_read(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(40), 9, hand_off=True, block_hashes=hashes(prompt(40), 16)))
            (end,) = heard.wait_for_ends(1)
            assert end.held_blocks == 2
            assert len(engine.read_held(1, 1, 1) or ()) == 1
            assert engine.read_held(1, 1, 2) is None, "beyond its end"
            engine.release_held(1)
            engine.release_held(1)
            self._wait_for(lambda: not engine.load().held_blocks)
            assert engine.read_held(1, 0, 2) is None
            assert engine.read_held(7, 0, 1) is None
        assert engine.read_held(1, 0, 1) is None, "after the engine's end"

    @pytest.mark.needs("hands_off")
    def test_an_aborted_hand_off_holds_nothing(self) -> None:
        with self.running(slow=True, max_batched_tokens=16) as (engine, heard):
            engine.submit(request(1, prompt(400), 9, n=2, hand_off=True, block_hashes=hashes(prompt(400), 16)))
            engine.abort(1)
            (end,) = heard.wait_for_ends(1)
            assert end.held_blocks is None

    @pytest.mark.needs("shows_blocks")
    def test_held_blocks_give_way_to_those_who_compute(self) -> None:
        """Two prompts of 7 of 16 blocks are held, of which half may be: then one needs 15."""
        with self.running(num_blocks=16) as (engine, heard):
            for key in (1, 2):
                asked = request(key, prompt(112, start=key), 9, block_hashes=hashes(prompt(112, start=key), 16))
                engine.submit(replace(asked, hand_off=True))
                assert heard.wait_for_ends(key)[0].held_blocks == 7
            self._wait_for(lambda: engine.load().held_blocks == 7)
            assert engine.read_held(1, 0, 1) is None, "the oldest went, for the other"
            assert len(engine.read_held(2, 0, 7) or ()) == 7
            engine.submit(request(3, prompt(200, start=9), 40))
            (end,) = heard.wait_for_ends(3)
            assert end.error is None
            assert engine.read_held(2, 0, 7) is None

    @pytest.mark.needs("hands_off")
    def test_a_prompt_larger_than_what_may_be_held_is_computed_and_not_held(self) -> None:
        with self.running(num_blocks=16) as (engine, heard):
            engine.submit(request(1, prompt(200), 9, hand_off=True, block_hashes=hashes(prompt(200), 16)))
            (end,) = heard.wait_for_ends(1)
            assert (end.held_blocks, end.completion_tokens, heard.finished) == (0, 1, {})

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    # ── embeddings ────────────────────────────────────────────────────────────────────────────────────────────────────

    def vector_of(self, generation: GenerationRequest, **limits: Any) -> list[float]:
        """What a request that pools comes to alone."""
        with self.running(**limits) as (engine, heard):
            engine.submit(generation)
            (end,) = heard.wait_for_ends(generation.key)
            assert end.error is None, end.error
            assert len(end.embedding) == engine.info.embedding_size
            return list(end.embedding)

    @pytest.mark.needs("pools")
    @pytest.mark.parametrize("kind", PoolingKind)
    def test_a_vector_comes_with_the_end_and_no_token_before_it(self, kind: PoolingKind) -> None:
        with self.running() as (engine, heard):
            engine.submit(pooled(1, prompt(40), kind))
            engine.submit(request(2, prompt(40), 0, pooling=Pooling(kind, normalize=False)))
            end, other = heard.wait_for_ends(1, 2)
            assert not heard.tokens
            assert (end.prompt_tokens, end.completion_tokens, end.error) == (40, 0, None)
            length = math.hypot(*other.embedding)
            assert end.embedding == pytest.approx([value / length for value in other.embedding], abs=1e-5)
            assert math.hypot(*end.embedding) == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.needs("pools")
    @pytest.mark.parametrize("kind", PoolingKind)
    def test_vectors_and_tokens_in_one_batch_are_as_each_alone(self, kind: PoolingKind) -> None:
        lengths = (1, 16, 33, 70)
        wanted = [self.vector_of(pooled(k, prompt(length, start=k), kind)) for k, length in enumerate(lengths)]
        tokens = [self.tokens_of(request(k, prompt(5 + 9 * k, start=k), 12)) for k in range(10, 13)]
        with self.running(max_batched_tokens=24, max_num_seqs=4) as (engine, heard):
            for k in range(3):
                engine.submit(request(10 + k, prompt(5 + 9 * (10 + k), start=10 + k), 12))
            for k, length in enumerate(lengths):
                engine.submit(pooled(k, prompt(length, start=k), kind))
            ends = heard.wait_for_ends(*range(4), *range(10, 13))
            for end, vector in zip(ends, wanted, strict=False):
                assert end.embedding == pytest.approx(vector, abs=1e-4)
            assert [[heard.tokens[k, 0]] for k in range(10, 13)] == tokens

    @pytest.mark.needs("pools")
    @pytest.mark.parametrize("kind", PoolingKind)
    def test_a_preempted_vector_is_computed_anew(self, kind: PoolingKind) -> None:
        wanted = self.vector_of(pooled(9, prompt(90), kind))
        with self.running(num_blocks=8, max_num_seqs=2, max_batched_tokens=4) as (engine, heard):
            engine.submit(request(1, prompt(14), 30, priority=5))
            engine.submit(pooled(9, prompt(90), kind))
            (end,) = heard.wait_for_ends(9)
            assert end.embedding == pytest.approx(wanted, abs=1e-4)
            assert end.preemptions > 0

    @pytest.mark.needs("pools")
    def test_the_last_tokens_vector_takes_cached_blocks_and_a_mean_takes_none(self) -> None:
        tokens = prompt(50)
        shared = {"block_hashes": hashes(tokens, 16), "cache_scope": ROOT}
        wanted = {kind: self.vector_of(pooled(1, tokens, kind)) for kind in PoolingKind}
        with self.running() as (engine, heard):
            engine.submit(request(1, tokens, 2, **shared))
            heard.wait_for_ends(1)
            engine.submit(pooled(2, tokens, PoolingKind.LAST, **shared))
            engine.submit(pooled(3, tokens, PoolingKind.MEAN, **shared))
            last, mean = heard.wait_for_ends(2, 3)
            assert (last.cached_prompt_tokens, mean.cached_prompt_tokens) == (48, 0)
            assert last.embedding == pytest.approx(wanted[PoolingKind.LAST], abs=1e-4)
            assert mean.embedding == pytest.approx(wanted[PoolingKind.MEAN], abs=1e-4)

    @pytest.mark.needs("pools")
    def test_a_vector_of_the_longest_prompt(self) -> None:
        with self.running(num_blocks=8) as (engine, heard):
            engine.submit(pooled(1, prompt(engine.info.max_model_len), PoolingKind.MEAN))
            assert heard.wait_for_ends(1)[0].error is None
            with pytest.raises(PromptTooLong):
                engine.submit(pooled(2, prompt(engine.info.max_model_len + 1)))

    @pytest.mark.needs("pools")
    def test_an_aborted_vector_ends_without_values(self) -> None:
        with self.running(max_num_seqs=1) as (engine, heard):
            engine.submit(request(1, prompt(4), 100))
            engine.submit(pooled(2, prompt(40)))
            engine.abort(2)
            engine.abort(1)
            assert heard.wait_for_ends(2)[0].embedding == ()

    @pytest.mark.needs("pools")
    @pytest.mark.parametrize("fields", [{"n": 2}, {"max_tokens": 1}, {"resumed": {0: [4]}}])
    def test_what_pools_generates_nothing(self, fields: dict[str, Any]) -> None:
        with self.running() as (engine, _):
            wrong = replace(pooled(1, prompt(4)), **fields)
            with pytest.raises(InvalidArgument, match="pooling"):
                engine.submit(wrong)

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_what_can_never_run_is_refused_at_once(self) -> None:
        with self.running() as (engine, heard):
            info = engine.info
            with pytest.raises(PromptTooLong):
                engine.submit(request(1, prompt(info.max_model_len), max_tokens=1))
            with pytest.raises(InvalidArgument, match="token_ids"):
                engine.submit(request(1, [3, info.vocab_size]))
            with pytest.raises(InvalidArgument, match="token_ids"):
                engine.submit(request(1, [3, -1]))
            with pytest.raises(InvalidArgument, match="token_ids"):
                engine.submit(request(1, []))
            with pytest.raises(InvalidArgument, match="stop_token_ids"):
                engine.submit(request(1, [3], stop_token_ids=frozenset({info.vocab_size})))
            with pytest.raises(InvalidArgument, match="logit_bias"):
                engine.submit(request(1, [3], sampling=Sampling(logit_bias={info.vocab_size: 1.0})))
            with pytest.raises(InvalidArgument, match="n:"):
                engine.submit(request(1, [3], n=info.max_n + 1))
            with pytest.raises(InvalidArgument, match="resumed"):
                engine.submit(request(1, [3], resumed={1: [4]}))
            with pytest.raises(InvalidArgument, match="block_hashes"):
                engine.submit(request(1, prompt(40), block_hashes=[bytes(16)]))
            assert not heard.ends

    def test_the_longest_request_that_fits_runs(self) -> None:
        with self.running(num_blocks=8) as (engine, heard):
            length = engine.info.max_model_len
            engine.submit(request(1, prompt(length - 5), 5))
            (end,) = heard.wait_for_ends(1)
            assert (end.error, end.completion_tokens) == (None, 5)

    def test_a_full_queue_refuses_and_recovers(self) -> None:
        with self.running(max_num_seqs=1, max_waiting=3) as (engine, heard):
            accepted = 0
            with pytest.raises(Overloaded):
                for key in range(100):
                    engine.submit(request(key, prompt(4), 300))
                    accepted += 1
            assert accepted >= 3
            for key in range(accepted):
                engine.abort(key)
            heard.wait_for_ends(*range(accepted))
            engine.submit(request(200, prompt(4), 2))
            assert heard.wait_for_ends(200)[0].error is None

    def test_a_key_may_not_be_used_twice_at_once(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(4), 200))
            with pytest.raises(AlreadyExists):
                engine.submit(request(1, prompt(4), 200))
            engine.abort(1)
            heard.wait_for_ends(1)

    # ── aborts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_abort_ends_a_request_before_the_next_step(self) -> None:
        with self.running() as (engine, heard):
            heard.on_step = lambda step: engine.abort(1) if any(o.key == 1 for o in step.outputs) else None
            engine.submit(request(1, prompt(40), 200, n=2))
            engine.submit(request(2, prompt(40, start=9), 10))
            first, second = heard.wait_for_ends(1, 2)
            assert first.error is None
            assert first.completion_tokens == sum(len(heard.tokens[1, i]) for i in range(2)) <= 2
            assert not {(1, 0), (1, 1)} & heard.finished.keys()
            assert (second.error, second.completion_tokens) == (None, 10)

    def test_abort_of_one_output_leaves_the_others(self) -> None:
        whole = self.tokens_of(request(1, prompt(40), 20, n=3, sampling=SEEDED))
        with self.running() as (engine, heard):
            heard.on_step = lambda step: engine.abort(1, 1) if any(o.output_index == 1 for o in step.outputs) else None
            engine.submit(request(1, prompt(40), 20, n=3, sampling=SEEDED))
            (end,) = heard.wait_for_ends(1)
            assert (heard.tokens[1, 0], heard.tokens[1, 2]) == (whole[0], whole[2])
            assert heard.tokens[1, 1] == whole[1][:1]
            assert end.completion_tokens == 41

    def test_abort_reaches_a_request_that_waits(self) -> None:
        with self.running(max_num_seqs=1) as (engine, heard):
            engine.submit(request(1, prompt(4), 300))
            engine.submit(request(2, prompt(4), 300))
            engine.abort(2)
            (end,) = heard.wait_for_ends(2)
            assert (end.error, end.completion_tokens) == (None, 0)
            engine.abort(1)
            heard.wait_for_ends(1)

    def test_abort_of_the_unknown_is_ignored(self) -> None:
        with self.running() as (engine, heard):
            engine.abort(77)
            engine.submit(request(1, prompt(4), 3))
            engine.abort(1, 5)
            assert heard.wait_for_ends(1)[0].completion_tokens == 3

    # ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_prompt_seen_before_is_found_in_the_cache(self) -> None:
        tokens = prompt(50)
        known = hashes(tokens, 16)
        with self.running() as (engine, heard):
            assert engine.cached_prefix_blocks(known) == 0
            engine.submit(request(1, tokens, 8, block_hashes=known, cache_scope=ROOT))
            heard.wait_for_ends(1)
            self._wait_for(lambda: engine.cached_prefix_blocks(known) == 3)
            heard.wait_for(lambda: set(known) <= heard.stored, "what was stored")
            engine.submit(request(2, tokens, 8, block_hashes=known, cache_scope=ROOT))
            (end,) = heard.wait_for_ends(2)
            assert end.cached_prompt_tokens == 48
            assert heard.tokens[2, 0] == heard.tokens[1, 0]

    def test_blocks_that_generated_tokens_fill_are_found_again(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(10), 40, cache_scope=ROOT))
            heard.wait_for_ends(1)
            conversation = prompt(10) + heard.tokens[1, 0]
            known = hashes(conversation, 16)
            self._wait_for(lambda: engine.cached_prefix_blocks(known) == 3)
            engine.submit(request(2, conversation, 4, block_hashes=known, cache_scope=ROOT))
            assert heard.wait_for_ends(2)[0].cached_prompt_tokens == 48

    def test_without_hashes_nothing_is_shared(self) -> None:
        with self.running() as (engine, heard):
            engine.submit(request(1, prompt(50), 20))
            engine.submit(request(2, prompt(50), 20, n=2))
            ends = heard.wait_for_ends(1, 2)
            assert [end.cached_prompt_tokens for end in ends] == [0, 0]
            assert not heard.stored
            assert heard.tokens[1, 0] == heard.tokens[2, 0] == heard.tokens[2, 1]

    def test_equal_prompts_at_once_are_computed_once(self) -> None:
        tokens = prompt(60)
        with self.running(max_batched_tokens=32, max_num_seqs=8) as (engine, heard):
            engine.submit(request(0, prompt(40, start=50), 20))
            for key in range(1, 5):
                engine.submit(request(key, tokens, 6, block_hashes=hashes(tokens, 16), cache_scope=ROOT))
            ends = heard.wait_for_ends(*range(5))[1:]
            assert sorted(end.cached_prompt_tokens for end in ends) == [0, 48, 48, 48]
            assert len({tuple(heard.tokens[key, 0]) for key in range(1, 5)}) == 1

    def test_full_blocks_leave_and_come_back_as_a_stored_prefix(self) -> None:
        tokens = prompt(50)
        known = hashes(tokens, 16)
        with self.running(emit_full_blocks=True) as (engine, heard):
            if not engine.info.transfers_blocks:
                pytest.skip("this engine transfers no blocks")
            engine.submit(request(1, tokens, 20, block_hashes=known, cache_scope=ROOT))
            heard.wait_for_ends(1)
            wanted, full = heard.tokens[1, 0], {block.block_hash: block for block in heard.full_blocks}
            assert set(known) <= full.keys()
            assert len(full) == len(heard.full_blocks) == (50 + 19) // 16
            assert [full[h].parent_block_hash for h in known] == [b"", *known[:-1]]
            assert {len(block.payload) for block in full.values()} == {engine.info.block_bytes}
        payloads = [full[block_hash].payload for block_hash in known]
        with self.running(emit_full_blocks=True) as (engine, heard):
            stored = StoredPrefix(0, payloads)
            engine.submit(request(1, tokens, 20, block_hashes=known, cache_scope=ROOT, stored_prefix=stored))
            (end,) = heard.wait_for_ends(1)
            assert (end.loaded_prompt_tokens, end.cached_prompt_tokens) == (48, 0)
            assert heard.tokens[1, 0] == wanted
            assert not set(known) & {block.block_hash for block in heard.full_blocks}
            assert engine.cached_prefix_blocks(known) == 3

    @pytest.mark.needs("shows_blocks")
    def test_a_stored_block_of_the_wrong_length_is_a_miss(self) -> None:
        tokens = prompt(50)
        with self.running() as (engine, heard):
            size = engine.info.block_bytes
            stored = StoredPrefix(0, [bytes(size), bytes(size - 1), bytes(size)])
            known = hashes(tokens, 16)
            engine.submit(request(1, tokens, 4, block_hashes=known, cache_scope=ROOT, stored_prefix=stored))
            (end,) = heard.wait_for_ends(1)
            assert (end.error, end.loaded_prompt_tokens) == (None, 16)

    # ── log-probabilities ─────────────────────────────────────────────────────────────────────────────────────────────

    def test_log_probabilities_come_as_many_as_asked(self) -> None:
        with self.running() as (engine, heard):
            for key, wanted in ((1, None), (2, 0), (3, 5)):
                engine.submit(request(key, prompt(12), 4, sampling=Sampling(seed=5, top_logprobs=wanted)))
            heard.wait_for_ends(1, 2, 3)
            assert heard.logprobs[1, 0] == []
            for key, wanted in ((2, 0), (3, 5)):
                assert len(heard.logprobs[key, 0]) == 4
                for found in heard.logprobs[key, 0]:
                    assert found.logprob <= 0
                    assert len(found.top_token_ids) == len(found.top_logprobs) == wanted
                    assert list(found.top_logprobs) == sorted(found.top_logprobs, reverse=True)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_load_counts_steps_and_shows_work(self) -> None:
        with self.running() as (engine, heard):
            before = engine.load()
            assert is_idle(before)
            engine.submit(request(1, prompt(40), 100))
            heard.wait_for(lambda: len(heard.tokens[1, 0]) >= 5, "five tokens")
            engine.abort(1)
            heard.wait_for_ends(1)
            assert engine.load().step > before.step

    def test_close_ends_what_is_live_with_unavailable(self) -> None:
        engine, heard = self.make_engine(max_num_seqs=1), Listener()
        engine.start(heard)
        engine.submit(request(1, prompt(40), 400))
        engine.submit(request(2, prompt(40), 400))
        engine.close()
        engine.close()
        for end in heard.wait_for_ends(1, 2):
            assert isinstance(end.error, WeirError)
            assert end.error.row.code is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(WeirError) as refused:
            engine.submit(request(3, prompt(4), 1))
        assert refused.value.row.code is grpc.StatusCode.UNAVAILABLE
        assert not heard.wrongs, heard.wrongs
