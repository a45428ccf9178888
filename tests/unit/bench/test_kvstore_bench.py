"""The bench measures real processes: small runs give every ratio, and the same goals as the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kvstore import eviction, lookup, one_host, wire
from bench.kvstore.blocks import MIB


async def test_one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_host, "_TOTAL_BYTES", 8 * MIB)
    monkeypatch.setattr(one_host, "_ROUNDS", 1)
    figures = await one_host.measure(tmp_path)
    assert set(figures.goals.values()) == {0.8}
    assert len(figures.ratios) == 4
    assert all(ratio > 0 for ratio in figures.ratios.values())


async def test_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_TOTAL_BYTES", 8 * MIB)
    monkeypatch.setattr(wire, "_ROUNDS", 1)
    figures = await wire.measure(tmp_path)
    assert len(figures.ratios) == 6
    assert all(ratio > 0 for ratio in (*figures.ratios.values(), *figures.measured.values()))


async def test_lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_OTHERS", 1000)
    monkeypatch.setattr(lookup, "_ROUNDS", 3)
    figures = await lookup.measure(tmp_path)
    assert len(figures.measured) == 2
    assert all(microseconds > 0 for microseconds in figures.measured.values())


def test_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_REQUESTS", 50)
    rates = eviction.measure().measured
    assert len(rates) == 12
    assert all(0 <= rate <= 1 for rate in rates.values())
