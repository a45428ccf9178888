from __future__ import annotations

import asyncio
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from weir_chassis.metrics import Metrics, metrics_server, watch_event_loop
from weir_chassis.testing import VirtualClock


def test_names_carry_the_service() -> None:
    metrics = Metrics("toy")
    metrics.counter("blocks", "Blocks", ("tier",)).labels("ram").inc(2)
    assert metrics.registry.get_sample_value("weir_toy_blocks_total", {"tier": "ram"}) == 2


def test_services_may_share_a_registry() -> None:
    registry = CollectorRegistry()
    Metrics("one", registry)
    Metrics("two", registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics("two", registry)


def test_the_http_server_answers_and_stops() -> None:
    metrics = Metrics("toy")
    metrics.leases.labels("slot").set(3)
    with metrics_server(metrics.registry, "127.0.0.1", 0) as port:
        response = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
        with response:
            text = response.read().decode()
    assert 'weir_toy_leases{kind="slot"} 3.0' in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


class LateClock(VirtualClock):
    """Wakes everyone 20 ms late."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + 0.02)


async def test_event_loop_lag_is_measured() -> None:
    metrics, clock = Metrics("toy"), LateClock()
    task = asyncio.ensure_future(watch_event_loop(metrics, clock, interval_seconds=0.5))
    await clock.advance(1.1)
    task.cancel()
    count = metrics.registry.get_sample_value("weir_toy_event_loop_lag_seconds_count")
    total = metrics.registry.get_sample_value("weir_toy_event_loop_lag_seconds_sum")
    assert count == 2
    assert total == pytest.approx(0.04)
