from __future__ import annotations

import pytest

from bench.executor_client import Heard
from bench.prefix import report
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.output_pb2 import TokenBatch


def _heard(first_token: float, *, store: int = 0, token: int = 7) -> Heard:
    return Heard({0: first_token, 1: first_token, 2: 99.0}, {0: [token], 1: [token]}, 2 * first_token, 0, store)


def test_rows_are_held_against_no_cache_and_only_if_the_prefix_came_from_where_they_say() -> None:
    rows = {"no_cache": _heard(10.0), "cold": _heard(1.0), "ram": _heard(0.5, store=1024), "disk": _heard(0.1)}
    figures = report(rows)
    assert figures.ratios == {
        "cold_first_token": pytest.approx(10.0),
        "cold_total": pytest.approx(10.0),
        "ram_first_token": pytest.approx(20.0),
        "ram_total": pytest.approx(20.0),
    }
    assert "disk_first_token" in figures.short
    assert "ram_first_token" not in figures.short
    assert set(figures.missing) == {"disk"}


def test_other_tokens_than_without_a_cache_are_no_result() -> None:
    with pytest.raises(AssertionError, match="restarted: other tokens"):
        report({"no_cache": _heard(10.0), "restarted": _heard(1.0, store=1024, token=8)})


def test_first_tokens_are_timed_once_and_ends_are_counted() -> None:
    heard = Heard()
    batch = TokenBatch(handles=[3, 4], output_indexes=[0, 0], first_token_indexes=[0, 0], token_counts=[2, 1])
    batch.token_ids.extend([5, 6, 7])
    assert heard.note(pb.GenerateResponse(tokens=batch), 0.25) == 0
    end = pb.RequestEnd(handle=3, engine_cached_tokens=16, store_cached_tokens=32)
    assert heard.note(pb.GenerateResponse(tokens=batch, ended=[end]), 0.5) == 1
    assert heard.first_token == {3: 0.25, 4: 0.25}
    assert heard.tokens == {3: [5, 6, 5, 6], 4: [7, 7]}
    assert (heard.seconds, heard.engine_cached, heard.store_cached) == (0.5, 16, 32)
