"""What a router counts, besides what the chassis counts for every service."""

from __future__ import annotations

from weir_chassis.errors import WeirError, reason_name
from weir_chassis.metrics import Metrics

# From a cached prompt on loopback to a long prefill behind a full queue.
TTFT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# From a tiny model to one that swaps.
_ITL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5)


class RouterMetrics:
    def __init__(self, metrics: Metrics):
        self.waiting = metrics.gauge("waiting_requests", "Requests that wait for a place")
        self.running = metrics.gauge("running_requests", "Requests between admission and their end")
        self.admission_seconds = metrics.histogram("admission_seconds", "Time in the queue", (), TTFT_SECONDS)
        self.ttft_seconds = metrics.histogram(
            "ttft_seconds", "From a call's start to its first delta", (), TTFT_SECONDS
        )
        self.itl_seconds = metrics.histogram("itl_seconds", "Between a request's deltas, per token", (), _ITL_SECONDS)
        self.attempts = metrics.counter("attempts", "Tries of requests on executors, by their end", ("end",))
        self.continuations = metrics.counter(
            "continuations", "Streams that went on with another worker", ("worker", "reason", "exact")
        )
        self.refusals = metrics.counter("refusals", "Requests refused before their stream began", ("reason",))
        self.completion_tokens = metrics.counter("completion_tokens", "Tokens delivered to clients")
        self.prefill_jobs = metrics.counter("prefill_jobs", "Prompts that waited in the queue", ("outcome",))
        self.retries = metrics.counter("retries", "Extra tries, by what for and after which error", ("extra", "reason"))
        self.refused_retries = metrics.counter("refused_retries", "Extra tries that the budget refused", ("extra",))
        self.hedges = metrics.counter(
            "hedges", "Second executors: that won or lost the race, failed in it, or were over with it", ("outcome",)
        )
        self.breakers = metrics.gauge("breakers", "Workers' breakers that are not closed", ("state",))
        self.breaker_moves = metrics.counter("breaker_moves", "Changes of breakers, by the state after", ("state",))
        self.retry_budget = metrics.gauge("retry_budget", "Extra tries that there may be now")
        self.unbilled_tokens = metrics.counter(
            "unbilled_tokens", "Tokens of streams that failed by no doing of their client's", ("reason",)
        )
        self.healthy_workers = metrics.gauge("healthy_workers", "Workers that take requests", ("kind",))
        self.retained_streams = metrics.gauge("retained_streams", "Streams that are kept for whoever resumes them")
        self.retained_bytes = metrics.gauge("retained_bytes", "What is kept of them")
        self.resumes = metrics.counter("resumes", "Streams that were resumed")
        self.unshared_streams = metrics.counter(
            "unshared_streams", "Retained streams that other routers no longer find, or have taken over", ("cause",)
        )
        self.retained_store_up = metrics.gauge("retained_store_up", "1 while the Redis of shared streams answers")

        self.prefix_executors = metrics.gauge("prefix_executors", "Executors of which it is known what they hold")
        self.prefix_blocks = metrics.gauge("prefix_blocks", "Blocks that they are known to hold, over all")

    def note_prefixes(self, executors: int, blocks: int) -> None:
        self.prefix_executors.set(executors)
        self.prefix_blocks.set(blocks)

    def refused(self, error: WeirError) -> None:
        self.refusals.labels(reason_name(error.reason)).inc()
