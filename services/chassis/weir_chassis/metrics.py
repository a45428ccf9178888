"""Prometheus metrics, all named `weir_<service>_…`.

A label has few values by construction: methods are those registered, codes and reasons are closed lists. Tenants,
requests and models of strangers never become labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from weir_chassis.clock import Clock

# From a cache hit on loopback to a long completion.
_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """One service's metrics in one registry. Services placed in one process may share a registry."""

    def __init__(self, service: str, registry: CollectorRegistry | None = None):
        assert service.isidentifier(), service
        self.service = service
        self.registry = registry or CollectorRegistry()
        self.calls = self.counter("calls", "Finished calls", ("method", "code", "reason"))
        self.call_seconds = self.histogram("call_seconds", "From a call's start to its end", ("method",), _CALL_SECONDS)
        self.calls_in_flight = self.gauge("calls_in_flight", "Calls that run now", ("method",))
        self.leases = self.gauge("leases", "Live leases", ("kind",))
        self.loop_lag_seconds = self.histogram(
            "event_loop_lag_seconds", "How late the event loop woke a sleeper", (), _LAG_SECONDS
        )

    def show_leases(self, kind: str, count: Callable[[], int]) -> None:
        """Counted when somebody looks, on whichever thread: they change several times with every request."""
        self.leases.labels(kind).set_function(count)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(self._name(name), text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(self._name(name), text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(self._name(name), text, labels, buckets=buckets, registry=self.registry)

    def _name(self, name: str) -> str:
        return f"weir_{self.service}_{name}"


@contextmanager
def metrics_server(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Answers Prometheus over HTTP on a thread of its own, so that a busy event loop can still be observed."""
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port, host, registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def watch_event_loop(metrics: Metrics, clock: Clock, interval_seconds: float = 0.5) -> None:
    """Measures for ever how late sleepers wake: a blocked loop shows here before it shows in anyone's latency."""
    while True:
        start = clock.monotonic()
        await clock.sleep(interval_seconds)
        metrics.loop_lag_seconds.observe(max(0.0, clock.monotonic() - start - interval_seconds))
