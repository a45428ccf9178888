"""What rounding the weights does to the logits: against unrounded ones, on texts that the model drew by itself.

Kullback-Leibler divergence is of the rounded distribution from the unrounded one, in nats per token.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from bench.contenders.serving import THREADS
from bench.report import Figures, print_table
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.compute import Placement, build_compute
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.parallel.layout import Layout
from weir_executor.paged.workload import Workload
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput

_TEXTS, _TOKENS = 8, 128  # 1024 tokens: enough for three digits of a mean
_BLOCK_SIZE = 16
_WEIGHT_BITS = {"int8": 8, "int4": 4}
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Over all tokens: `logit` errors are absolute; `same_best` is the share of tokens whose likeliest next one is."""

    largest_logit_error: float
    mean_logit_error: float
    same_best: float
    divergence: float


@dataclass(frozen=True, slots=True)
class _WholeText:
    """A row as decoders know it."""

    first: int
    count: int
    blocks: list[int]
    adapter: str = ""


def measure(model_dirs: Mapping[str, Path]) -> Figures:
    """Prints the table."""
    figures, lines = Figures(), []
    for name, model_dir in model_dirs.items():
        texts = _drawn(model_dir)
        exact = _logits(model_dir, texts, 0)
        for weights, bits in _WEIGHT_BITS.items():
            found = difference(exact, _logits(model_dir, texts, bits))
            figures.measured[f"{weights}_{name}_kl"] = found.divergence
            figures.measured[f"{weights}_{name}_same_best"] = found.same_best
            figures.measured[f"{weights}_{name}_largest_logit_error"] = found.largest_logit_error
            figures.measured[f"{weights}_{name}_mean_logit_error"] = found.mean_logit_error
            lines.append([name, weights, *_cells(found)])
    header = ["model", "weights", "largest logit error", "mean", "same best token", "KL divergence"]
    print_table("Rounded weights against bfloat16", header, lines)
    return figures


def difference(exact: torch.Tensor, rounded: torch.Tensor) -> Difference:
    """Of two [tokens, vocab] float32 logits."""
    error = (exact - rounded).abs()
    wanted, found = exact.log_softmax(-1), rounded.log_softmax(-1)
    return Difference(
        largest_logit_error=error.max().item(),
        mean_logit_error=error.mean().item(),
        same_best=(exact.argmax(-1) == rounded.argmax(-1)).float().mean().item(),
        divergence=(wanted.exp() * (wanted - found)).sum(-1).mean().item(),
    )


def _cells(found: Difference) -> list[str]:
    errors = [f"{found.largest_logit_error:.3f}", f"{found.mean_logit_error:.4f}"]
    return [*errors, f"{100 * found.same_best:.1f} %", f"{found.divergence:.5f}"]


def _drawn(model_dir: Path) -> list[list[int]]:
    """Seeded texts by the unrounded model, at temperature 1."""
    steps = queue.SimpleQueue[StepOutput]()
    engine = load_engine(PagedEngineConfig(model_dir, kv_cache_bytes=256 << 20, num_threads=THREADS))
    engine.start(steps.put)
    texts = [[1] for _ in range(_TEXTS)]
    for key, text in enumerate(texts):
        sampling = Sampling(temperature=1.0, seed=key)
        engine.submit(GenerationRequest(key, list(text), _TOKENS - 1, sampling=sampling, ignore_eos=True))
    ended = 0
    while ended < _TEXTS:
        step = steps.get(timeout=_ANSWER_SECONDS)
        for output in step.outputs:
            texts[output.key] += output.token_ids
        ended += len(step.ended)
    engine.close()
    return texts


def _logits(model_dir: Path, texts: list[list[int]], weight_bits: int) -> torch.Tensor:
    """[tokens, vocab] float32 of all tokens."""
    model, blocks = load_config(model_dir), -(-_TOKENS // _BLOCK_SIZE)
    placement = Placement("cpu", "auto", THREADS, Layout(1, 1))
    workload = Workload(
        model_dir, model, torch.bfloat16, _TOKENS, _BLOCK_SIZE, blocks * len(texts), weight_bits=weight_bits
    )
    with ExitStack() as resources, torch.inference_mode():
        decoder = build_compute(workload, placement, resources).decoder
        found = []
        for index, text in enumerate(texts):
            row = _WholeText(0, len(text), list(range(index * blocks, (index + 1) * blocks)))
            places = list(range(len(text)))
            rows = [cast("Scheduled", row)]
            batch = FlatBatch(rows, text, places, [len(text) - 1], places, best_only=False, pooled=[])
            logits = decoder.decode(batch).logits
            assert logits is not None
            found.append(logits.clone())
        return torch.cat(found)
