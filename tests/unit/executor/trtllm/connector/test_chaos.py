"""The run of `make chaos-connector`, short; and that it would see what it looks for."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.connector_run import Run, is_clean, summary
from weir_executor.trtllm.connector.leader import Leader
from weir_executor.trtllm.connector.worker import RankWorker

OPERATIONS = 15_000


async def test_nothing_wrong_is_found_nobody_is_parked_and_nothing_is_left() -> None:
    run = Run(7)
    run.num_ranks = 2
    counts = await run.go(OPERATIONS)
    assert is_clean(counts), summary(counts)
    assert counts["operations"] >= OPERATIONS
    assert counts["offer hit"] > 50
    assert counts["blocks loaded"] > 200
    assert sum(number for name, number in counts.items() if name.startswith("injected ")) > 10


async def broken(ranks: int | None = None) -> Any:
    """`ranks`: of the first engine."""
    run = Run(7)
    run.num_ranks = ranks or run.num_ranks
    return await run.go(2 * OPERATIONS)


async def test_blocks_that_are_freed_while_they_are_copied_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Leader.request_finished
    monkeypatch.setattr(Leader, "request_finished", lambda *told: finished(*told) and False)
    assert (await broken())["wrong hits"]


async def test_another_ranks_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = RankWorker._parts

    def others(self: RankWorker, *told: Any) -> Any:
        self._rank, mine = 0, self._rank
        try:
            return parts(self, *told)
        finally:
            self._rank = mine

    monkeypatch.setattr(RankWorker, "_parts", others)
    assert (await broken(ranks=3))["wrong hits"]


async def test_one_scope_for_another_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(root: bytes, tokens: list[int], size: int) -> list[bytes]:
        return [bytes(16)] * (len(tokens) // size)

    monkeypatch.setattr("weir_executor.trtllm.connector.requests.block_hash", lambda parent, tokens: bytes(16))
    monkeypatch.setattr("chaos.connector_run.block_hashes", same)
    assert (await broken())["wrong hits"]


async def test_leases_that_are_not_given_back_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leader, "_release_spent", lambda self: None)
    assert (await broken())["leases"]


async def test_whoever_is_never_told_of_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = RankWorker.get_finished
    monkeypatch.setattr(RankWorker, "get_finished", lambda *told: ([], finished(*told)[1]))
    monkeypatch.setattr("chaos.connector_run._MOST_PARKED", 200)
    with pytest.raises(AssertionError, match="parked for ever"):
        await broken()
