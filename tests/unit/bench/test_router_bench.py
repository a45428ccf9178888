"""The parts of `make bench-router` that decide: what is due, what was heard, what a figure is."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.router import clock_token
from bench.router.chunks import Chunks
from bench.router.contenders import DIRECT_GRPC, WEIR
from bench.router.doors import complete_tokens, rows
from bench.router.load import Heard, clients
from bench.router.pace import VARIABLE, Drawing, DueTokens, Pace, read_pace, write_pace
from bench.router.processes import cpu_seconds, family, resident_mib
from bench.router.run import Sample, Samples
from bench.router.soak import figures_of
from weir.inference.v1.output_pb2 import TokenBatch


@given(st.integers(0, 10**15), st.integers(0, 9 * 10**8))
def test_a_token_tells_its_age(drawn_ns: int, age_ns: int) -> None:
    token_id = clock_token.FIRST + drawn_ns // 10_000 % clock_token.STEPS
    assert clock_token.age_seconds(token_id, drawn_ns + age_ns) == pytest.approx(age_ns / 1e9, abs=1.1e-5)


@given(st.lists(st.integers(clock_token.FIRST, clock_token.FIRST + clock_token.STEPS - 1)), st.integers(1, 40))
def test_tokens_are_found_wherever_the_answer_is_cut(token_ids: list[int], size: int) -> None:
    events = "".join(f'data: {{"text":"{clock_token.text(token_id)}"}}\n\n' for token_id in token_ids).encode()
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _cut(events, 7)) + b"0\r\n\r\n"
    chunks, rest, found = Chunks(), b"", []
    for part in _cut(b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n" + framed, size):
        assert not chunks.done
        tokens, rest = complete_tokens(rest + chunks.feed(part))
        found += tokens
    assert chunks.done
    assert found == token_ids
    assert rest == b""


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_every_stream_gets_its_tokens_at_its_own_pace() -> None:
    due, fast, slow = DueTokens(), Drawing(left=3, period=1.0, due=0.0), Drawing(left=2, period=2.0, due=0.5)
    assert due.seconds_left(0.0) is None
    due.add(fast)
    due.add(slow)
    taken = [["fast" if one is fast else "slow" for one, _ in due.take(now)] for now in (0.0, 0.4, 1.0, 2.0, 2.5)]
    assert taken == [["fast"], [], ["slow", "fast"], ["fast"], ["slow"]]
    assert due.seconds_left(2.5) is None


def test_what_was_not_taken_when_it_was_due_comes_together() -> None:
    due, drawing = DueTokens(), Drawing(left=5, period=1.0, due=0.0)
    due.add(drawing)
    assert due.take(2.5) == [(drawing, 3)]
    assert (drawing.index, drawing.left, drawing.due) == (3, 2, 3.0)
    assert due.take(9.0) == [(drawing, 2)]
    assert due.seconds_left(9.0) is None


def test_a_stream_that_is_over_gets_nothing() -> None:
    due, drawing = DueTokens(), Drawing(left=5, period=1.0, due=0.0)
    due.add(drawing)
    assert due.take(0.0) == [(drawing, 1)]
    drawing.left = 0
    assert due.take(2.0) == []


def test_every_token_of_a_step_is_its_requests() -> None:
    batch = TokenBatch(handles=[7, 9], token_counts=[2, 1], token_ids=[1, 2, 3])
    assert list(rows(batch)) == [(7, 1), (7, 2), (9, 3)]


def test_the_pace_is_as_the_file_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "pace"))
    for pace in (Pace(100, 0.001), Pace(10, 0.005)):
        write_pace(tmp_path / "pace", pace)
        assert read_pace() == pace
    assert read_pace().period == pytest.approx(0.1)


def test_what_this_process_uses_is_seen() -> None:
    before, own = cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert cpu_seconds([os.getpid()]) - before >= 0.04
    assert os.getpid() in family(os.getpid())
    assert resident_mib([os.getpid()]) > 1


def test_figures_are_the_best_rounds_without_the_floor() -> None:
    samples = Samples()
    for cpu, ttft in ((2.0, 0.004), (1.0, 0.005)):
        samples.taken.setdefault((WEIR.name, "long"), []).append(Sample(cpu, 100_000, 10, ttft, 0.1))
        samples.taken.setdefault((WEIR.name, "alone"), []).append(Sample(cpu, 100, 10, ttft, 0.1))
    samples.taken[DIRECT_GRPC.name, "alone"] = [Sample(0.0, 100, 10, 0.001, 0.1)]
    assert samples.best(WEIR.name, "us_per_token") == pytest.approx(10.0)
    assert samples.added(WEIR, "ttft_ms") == pytest.approx(3.0)
    assert samples.best("nobody", "us_per_token") is None
    assert samples.added(WEIR, "p99_ms") is None


class Answering:
    """A door that answers at once, until it has answered so many."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    async def answer(self, tokens: int, heard: Heard) -> float:
        await asyncio.sleep(0)
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("the router is gone")
        return 0.001


async def test_clients_ask_again_and_again_and_are_gone_with_the_run() -> None:
    async with clients(Answering(1000), 4, 1, stagger=0, pause=0) as heard:
        heard.counting = True
        while heard.requests < 100:
            await asyncio.sleep(0)
    assert len(heard.first_tokens) == heard.requests
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_fails_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        async with clients(Answering(10), 4, 1, stagger=0, pause=0):
            await asyncio.Event().wait()
    assert failed.group_contains(ConnectionError, match="gone")


def test_memory_is_flat_when_the_end_is_as_the_beginning() -> None:
    flat, grown = figures_of({10: 100.0, 20: 120.0, 30: 101.0}), figures_of({10: 100.0, 20: 110.0})
    assert (flat.short, grown.short) == ([], ["warm_memory_of_end"])
    assert grown.measured == {"warm_mib": 100.0, "end_mib": 110.0, "requests": 20}
