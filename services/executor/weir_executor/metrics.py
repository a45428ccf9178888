"""What the executor measures, besides what the chassis measures of every call."""

from __future__ import annotations

from weir_chassis.errors import WeirError, reason_name
from weir_chassis.metrics import Metrics
from weir_executor.engine import EngineLoad
from weir_executor.step_output import RequestEnd

_PHASE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LOAD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ERRORS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2, 4, 8)
# The gauges show `EngineLoad` field by field; an autoscaler reads `waiting_requests`.
_LOAD_FIELDS = (
    "waiting_requests",
    "running_sequences",
    "free_blocks",
    "total_blocks",
    "cached_blocks",
    "outstanding_tokens",
    "preemptions",
    "prefill_tokens",
    "decode_tokens",
    "draft_tokens",
    "busy_seconds",
    "chunk_tokens",
    "outstanding_prefill_tokens",
    "held_blocks",
)
_BATCH_FIELDS = ("sequences", "prefill_tokens", "decode_tokens", "draft_tokens", "seconds")


class ExecutorMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._steps = metrics.counter("steps", "Engine steps that had something to say")
        self._tokens = metrics.counter("generated_tokens", "Tokens generated")
        self._prompt_tokens = metrics.counter(
            "prompt_tokens", "Prompt tokens of ended requests, by origin", ("origin",)
        )
        self._drafts = metrics.counter("checked_drafts", "Drafts of ended requests, by outcome", ("outcome",))
        self._ends = metrics.counter("requests_ended", "Requests that the engine ended", ("reason",))
        self._phases = metrics.histogram("phase_seconds", "Time of ended requests", ("phase",), _PHASE_SECONDS)
        self._load = {name: metrics.gauge(name, f"EngineLoad.{name}") for name in _LOAD_FIELDS}
        self._batch = {name: metrics.gauge(f"batch_{name}", f"Of the newest batch: {name}") for name in _BATCH_FIELDS}
        self._token_seconds = metrics.gauge("prefill_token_seconds", "What a prompt's token takes lately")
        self.loads = metrics.counter("kv_loads", "Prefixes asked of the kvstore", ("outcome",))
        self.load_bytes = metrics.counter("kv_load_bytes", "Bytes of KV blocks received from the kvstore")
        self.load_seconds = metrics.histogram("kv_load_seconds", "From asking to having", (), _LOAD_SECONDS)
        self.prefill_jobs = metrics.counter("prefill_jobs", "Prompts taken out of the queue", ("outcome",))
        self.take_overs = metrics.counter("take_overs", "Prompts that another executor computed", ("outcome",))
        self.take_over_bytes = metrics.counter("take_over_bytes", "Bytes of KV blocks read from other executors")
        self.take_over_seconds = metrics.histogram(
            "take_over_seconds", "From asking another executor to having its blocks", (), _LOAD_SECONDS
        )
        self.decisions = metrics.counter("kv_decisions", "Stored prefixes, loaded or computed", ("decision",))
        self.load_error = metrics.histogram("kv_load_error", "What a load took by what was predicted", (), _ERRORS)
        self.saved_seconds = metrics.counter("kv_saved_seconds", "Of prefill, that loaded blocks would have taken")
        self.offers = metrics.counter("kv_offered_blocks", "Full blocks offered to the kvstore", ("outcome",))
        self.offer_bytes = metrics.counter("kv_offer_bytes", "Bytes of KV blocks sent to the kvstore")

    def note_step(self, tokens: int) -> None:
        self._steps.inc()
        self._tokens.inc(tokens)

    def note_end(self, end: RequestEnd) -> None:
        self._ends.labels(_reason(end.error)).inc()
        computed = end.prompt_tokens - end.cached_prompt_tokens - end.loaded_prompt_tokens
        for origin, tokens in (
            ("cached", end.cached_prompt_tokens),
            ("loaded", end.loaded_prompt_tokens),
            ("computed", computed),
        ):
            self._prompt_tokens.labels(origin).inc(max(0, tokens))
        self._drafts.labels("accepted").inc(end.accepted_draft_tokens)
        self._drafts.labels("rejected").inc(end.draft_tokens - end.accepted_draft_tokens)
        for phase, seconds in (
            ("queue", end.queue_seconds),
            ("prefill", end.prefill_seconds),
            ("decode", end.decode_seconds),
        ):
            self._phases.labels(phase).observe(seconds)

    def note_load(self, load: EngineLoad) -> None:
        for name, gauge in self._load.items():
            gauge.set(getattr(load, name))
        if load.prefill_token_seconds is not None:
            self._token_seconds.set(load.prefill_token_seconds.mean)
        for name, gauge in self._batch.items():
            gauge.set(getattr(load.last_batch, name, 0))


def _reason(error: Exception | None) -> str:
    if error is None:
        return "OK"
    return reason_name(error.reason) if isinstance(error, WeirError) else "INTERNAL"
