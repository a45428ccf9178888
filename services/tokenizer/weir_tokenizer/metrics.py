"""What the tokenizer counts, besides what the chassis counts for every service."""

from __future__ import annotations

from weir_chassis.metrics import Metrics
from weir_tokenizer.encoding_cache import CacheEvent, EncodingCache

# From a cached sentence to a million tokens.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class TokenizerMetrics:
    def __init__(self, metrics: Metrics):
        self.tokens = metrics.counter("tokens", "Token ids given out")
        self.render_seconds = metrics.histogram("render_seconds", "Rendering one chat template", (), _SECONDS)
        self.encode_seconds = metrics.histogram("encode_seconds", "Encoding one request's texts", (), _SECONDS)
        self._cache_events = metrics.counter("cache_events", "Encodings found, not found, dropped", ("event",))
        self._cache_bytes = metrics.gauge("cache_bytes", "Bytes of the encodings kept")

    def count_cache_event(self, event: CacheEvent) -> None:
        self._cache_events.labels(event.value).inc()

    def watch(self, cache: EncodingCache) -> None:
        """The gauge reads the cache's size when it is scraped."""
        self._cache_bytes.set_function(lambda: cache.size_bytes)
