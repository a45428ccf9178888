"""The store's counters for Prometheus, read when they are scraped: there is one set of books."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weir_kvstore.store import BlockStore


class StoreCollector(Collector):
    """`weir_kvstore_…{tier}`. Scraped on another thread: it only reads numbers."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        report = self._store.report()
        for name, value in (
            ("blocks", report.blocks),
            ("bytes", report.bytes),
            ("capacity_bytes", report.capacity_bytes),
        ):
            gauge = GaugeMetricFamily(f"weir_kvstore_{name}", "Held now, in any state", labels=["tier"])
            gauge.add_metric([report.tier], value)
            yield gauge
        for name, value in asdict(report.counters).items():
            counter = CounterMetricFamily(f"weir_kvstore_{name}_blocks", "Since start", labels=["tier"])
            counter.add_metric([report.tier], value)
            yield counter
