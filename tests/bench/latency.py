"""`make bench-latency`: how soon a cancellation reaches the engine, and what long prompts do to others' tokens.

The bare engine with the measured model. A cancellation is counted in steps, and timed until the request's last word:
its blocks are free then. Inter-token latency is that of one request that decodes while another's 2048 tokens are
prefilled: with steps as large as they may be, and held to a target.
"""

from __future__ import annotations

import queue
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from bench.contenders.serving import KV_CACHE_GIB, THREADS
from bench.report import Figures, print_table
from bench.workload import VOCAB_SIZE
from weir_executor.engine import Engine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput

_CANCELS, _PROMPT, _BUSY = 40, 2048, 4
_ANSWER_SECONDS = 120.0  # nothing here takes as long: the engine hangs
_TARGET_MS = 50.0


class Heard:
    """Steps as they come, each with the second it came at."""

    def __init__(self) -> None:
        self._steps = queue.SimpleQueue[tuple[float, StepOutput]]()

    def __call__(self, step: StepOutput) -> None:
        self._steps.put((time.perf_counter(), step))

    def until_end(self, key: int) -> Iterator[tuple[float, StepOutput]]:
        """What comes up to a request's last word."""
        while True:
            at, step = self._steps.get(timeout=_ANSWER_SECONDS)
            yield at, step
            if any(end.key == key for end in step.ended):
                return

    def until_token(self, key: int) -> None:
        while not any(output.key == key for output in self._steps.get(timeout=_ANSWER_SECONDS)[1].outputs):
            pass


def measure(model_dir: Path) -> Figures:
    figures = Figures()
    with _running(model_dir, None) as (engine, heard):
        _measure_cancels(engine, heard, figures)
        free = _gaps_beside_a_prefill(engine, heard)
    with _running(model_dir, _TARGET_MS / 1e3) as (engine, heard):
        _gaps_beside_a_prefill(engine, heard)  # it finds its chunk
        held = _gaps_beside_a_prefill(engine, heard)
    lines = []
    for name, gaps in (("no target", free), (f"target {_TARGET_MS:g} ms", held)):
        median, worst = statistics.median(gaps), max(gaps)
        key = name.replace(" ", "_")
        figures.measured |= {f"itl_{key}_p50_ms": 1e3 * median, f"itl_{key}_max_ms": 1e3 * worst}
        lines.append([name, f"{1e3 * median:.1f} ms", f"{1e3 * worst:.1f} ms"])
    print_table(f"Inter-token latency while {_PROMPT} tokens are prefilled", ["steps", "median", "longest"], lines)
    return figures


@contextmanager
def _running(model_dir: Path, itl_target_seconds: float | None) -> Iterator[tuple[Engine, Heard]]:
    config = PagedEngineConfig(
        model_dir, kv_cache_bytes=KV_CACHE_GIB << 30, num_threads=THREADS, itl_target_seconds=itl_target_seconds
    )
    engine, heard = load_engine(config), Heard()
    engine.start(heard)
    try:
        yield engine, heard
    finally:
        engine.close()


def _measure_cancels(engine: Engine, heard: Heard, figures: Figures) -> None:
    """One of several that decode, at a moment of its own choosing."""
    dice, seconds, late = random.Random(7), list[float](), list[int]()
    for key in range(1, _BUSY):
        engine.submit(_request(key, 16, 4000))
    for key in range(100, 100 + _CANCELS):
        engine.submit(_request(key, 16, 4000))
        heard.until_token(key)
        time.sleep(dice.random() * 0.02)
        cancelled_at = time.perf_counter()
        engine.abort(key)
        after = [(at, step) for at, step in heard.until_end(key) if at > cancelled_at]
        seconds.append(after[-1][0] - cancelled_at)
        # The step that was under way may still have a token; one that began later would be a second.
        late.append(max(0, sum(output.key == key for _, step in after for output in step.outputs) - 1))
    for key in range(1, _BUSY):
        engine.abort(key)
        list(heard.until_end(key))
    figures.measured |= {"cancel_steps_max": max(late), "cancel_p50_ms": 1e3 * statistics.median(seconds)}
    figures.measured["cancel_max_ms"] = 1e3 * max(seconds)
    row = [str(_CANCELS), str(max(late)), f"{1e3 * statistics.median(seconds):.1f} ms", f"{1e3 * max(seconds):.1f} ms"]
    print_table("Cancelling one of four", ["cancels", "steps begun after it", "median", "longest"], [row])


def _gaps_beside_a_prefill(engine: Engine, heard: Heard) -> list[float]:
    """Seconds between one request's tokens, from the submit of a long prompt to its first token."""
    engine.submit(_request(1, 16, 4000))
    heard.until_token(1)
    engine.submit(_request(2, _PROMPT, 1))
    came = [at for at, step in heard.until_end(2) if any(output.key == 1 for output in step.outputs)]
    engine.abort(1)
    list(heard.until_end(1))
    return [later - earlier for earlier, later in pairwise(came)]


def _request(key: int, prompt: int, max_tokens: int) -> GenerationRequest:
    dice = random.Random(key)
    token_ids = [dice.randrange(10, VOCAB_SIZE) for _ in range(prompt)]
    return GenerationRequest(key, token_ids, max_tokens, sampling=Sampling(temperature=0.0), ignore_eos=True)
