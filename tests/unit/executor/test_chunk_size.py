"""The controller against devices whose cost is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.chunk_size import ChunkSize

_LEAST, _MOST = 16, 512


def _observe(chunk: ChunkSize, fixed: float, per_token: float) -> float:
    """A full step on a device that takes `fixed` seconds for its decodes and so much for each token of a prompt."""
    seconds = fixed + per_token * chunk.tokens
    chunk.observe(seconds, prefill_tokens=chunk.tokens, decode_tokens=4)
    return seconds


@given(st.floats(0.001, 0.2), st.floats(0.0, 0.9), st.floats(1e-6, 1e-2))
def test_it_settles_below_the_target_and_uses_most_of_it(target: float, fixed_share: float, per_token: float) -> None:
    chunk, fixed = ChunkSize(target, least=_LEAST, most=_MOST), target * fixed_share
    for _ in range(100):
        _observe(chunk, fixed, per_token)
    steps = [_observe(chunk, fixed, per_token) for _ in range(200)]
    reachable = fixed + per_token * _LEAST <= target
    if not reachable:
        assert chunk.tokens == _LEAST, "out of reach: prompts still advance"
        return
    one_up = per_token * max(1, _MOST // 32)
    assert max(steps) <= target + one_up
    mean = sum(steps) / len(steps)
    assert mean >= 0.6 * target - one_up or chunk.tokens == _MOST or fixed > 0.5 * target


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 600), st.integers(0, 64))))
def test_it_stays_within_its_bounds_whatever_happens(steps: list[tuple[float, int, int]]) -> None:
    chunk = ChunkSize(0.05, least=_LEAST, most=_MOST)
    for seconds, prefill, decode in steps:
        before = chunk.tokens
        chunk.observe(seconds, prefill_tokens=prefill, decode_tokens=decode)
        assert _LEAST <= chunk.tokens <= _MOST
        if not (prefill and decode):
            assert chunk.tokens == before


def test_one_slow_step_takes_three_quarters_at_most_and_comes_back() -> None:
    chunk = ChunkSize(0.05, least=_LEAST, most=_MOST)
    chunk.observe(60.0, prefill_tokens=512, decode_tokens=1)
    assert chunk.tokens == 128
    for _ in range(24):
        chunk.observe(0.01, prefill_tokens=chunk.tokens, decode_tokens=1)
    assert chunk.tokens == 512


def test_a_step_that_was_not_full_is_no_reason_to_grow() -> None:
    chunk = ChunkSize(0.05, least=_LEAST, most=_MOST)
    chunk.observe(0.2, prefill_tokens=512, decode_tokens=1)
    chunk.observe(0.001, prefill_tokens=chunk.tokens - 1, decode_tokens=1)
    assert chunk.tokens == 128


def test_without_a_target_steps_are_as_large_as_they_may_be() -> None:
    chunk = ChunkSize(None, least=_LEAST, most=_MOST)
    chunk.observe(60.0, prefill_tokens=512, decode_tokens=1)
    assert chunk.tokens == _MOST
