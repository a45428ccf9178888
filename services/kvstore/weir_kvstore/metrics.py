"""The store's counters for Prometheus, read when they are scraped: there is one set of books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weir_kvstore.store import BlockStore
from weir_kvstore.tier import Counters, TierReport


class StoreCollector(Collector):
    """`weir_kvstore_…{tier}`, evictions by policy too. Scraped on another thread: it only reads numbers."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        reports = self._store.reports()
        for name in ("blocks", "bytes", "capacity_bytes"):
            gauge = GaugeMetricFamily(f"weir_kvstore_{name}", "Held now, in any state", labels=["tier"])
            for report in reports:
                gauge.add_metric([report.tier], getattr(report, name))
            yield gauge
        yield self._faults(reports)
        for counter in fields(Counters):
            if counter.name != "evicted":
                yield self._counted(counter.name, reports)
        yield self._evicted(reports)
        yield CounterMetricFamily(
            "weir_kvstore_saved_seconds", "Of prefill, by what was read", value=self._store.saved_seconds
        )

    def _faults(self, reports: Sequence[TierReport]) -> Metric:
        gauge = GaugeMetricFamily("weir_kvstore_fault", "1: it serves nothing now, or takes nothing", labels=["tier"])
        for report in reports:
            gauge.add_metric([report.tier], bool(report.fault))
        return gauge

    def _evicted(self, reports: Sequence[TierReport]) -> Metric:
        counter = CounterMetricFamily("weir_kvstore_evicted_blocks", "Since start", labels=["tier", "policy"])
        for report in reports:
            by_policy = {report.policy: 0, **(report.evicted_by_policy or {report.policy: report.counters.evicted})}
            for policy, blocks in by_policy.items():
                counter.add_metric([report.tier, policy], blocks)
        return counter

    def _counted(self, name: str, reports: Sequence[TierReport]) -> Metric:
        unit = "" if name.endswith("_bytes") else "_blocks"
        counter = CounterMetricFamily(f"weir_kvstore_{name}{unit}", "Since start", labels=["tier"])
        for report in reports:
            counter.add_metric([report.tier], getattr(report.counters, name))
        return counter
