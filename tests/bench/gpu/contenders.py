"""Ours and transformers' two ways, one after the other in this process."""

from __future__ import annotations

import gc
import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.shape import Shape
from bench.workload import Work
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput

_STEP_SECONDS = 300.0  # no step takes as long: the engine hangs
_PAD = 0


@dataclass(frozen=True, slots=True)
class Timed:
    seconds: float  # from the first submission to the last token
    decode_step_seconds: float | None = None  # of steps in which all rows decode; None where nobody can tell


Answer = Callable[[Work], Timed]


@contextmanager
def weir(directory: Path, shape: Shape, device: torch.device, max_num_seqs: int, tokens: int) -> Iterator[Answer]:
    """`tokens`: of all sequences together, at most."""
    config = PagedEngineConfig(
        directory,
        device=str(device),
        kv_cache_bytes=int(1.3 * tokens * shape.kv_bytes_per_token) + (1 << 20),
        max_num_seqs=max_num_seqs,
        max_batched_tokens=8192,
        max_waiting=4 * max_num_seqs,
        max_model_len=4096,
    )
    engine, steps = load_engine(config), queue.SimpleQueue[tuple[float, StepOutput]]()
    engine.start(lambda step: steps.put((time.perf_counter(), step)))

    def answer(work: Work) -> Timed:
        began = time.perf_counter()
        for key, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
            engine.submit(GenerationRequest(key, prompt, length, (), Sampling(temperature=0.0), ignore_eos=True))
        return _timed(steps, work, began)

    try:
        yield answer
    finally:
        engine.close()


def _timed(steps: queue.SimpleQueue[tuple[float, StepOutput]], work: Work, began: float) -> Timed:
    counts = [0] * len(work.prompts)
    ended, moments = 0, []  # of steps in which everybody decodes
    now = began
    while ended < len(counts):
        now, step = steps.get(timeout=_STEP_SECONDS)
        if all(counts) and not ended:
            moments.append(now)
        for output in step.outputs:
            counts[output.key] += len(output.token_ids)
        for end in step.ended:
            assert end.error is None, end.error
            ended += 1
    assert counts == work.lengths, (counts, work.lengths)
    is_told = len(moments) > 1
    return Timed(now - began, (moments[-1] - moments[0]) / (len(moments) - 1) if is_told else None)


@contextmanager
def transformers_generate(directory: Path, device: torch.device) -> Iterator[Answer]:
    model = _transformers_model(directory, device)

    def answer(work: Work) -> Timed:
        (length,) = set(work.lengths)
        options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": _PAD}
        began = time.perf_counter()
        ids = torch.tensor(work.prompts, device=device)  # of one length: nothing is padded
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()
        taken = time.perf_counter() - began
        assert all(len(row) == len(prompt) + length for row, prompt in zip(out, work.prompts, strict=True))
        return Timed(taken)

    yield answer


@contextmanager
def transformers_continuous(directory: Path, device: torch.device) -> Iterator[Answer]:
    """With whatever sizes it chooses for itself, which are by the device's memory."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _transformers_model(directory, device)
    generation = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=_PAD)
    sizes = {} if device.type == "cuda" else {"num_blocks": 256, "max_batch_tokens": 512}
    settings = ContinuousBatchingConfig(allow_block_sharing=False, **sizes)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=settings)
    manager.start()

    def answer(work: Work) -> Timed:
        began = time.perf_counter()
        left = {
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1): length
            for prompt, length in zip(work.prompts, work.lengths, strict=True)
        }
        while left:
            result = manager.get_result(timeout=1)
            assert result is not None or manager.is_running(), "continuous batching stopped"
            if result is not None and result.is_finished():
                assert len(result.generated_tokens) == left.pop(result.request_id)
        return Timed(time.perf_counter() - began)

    try:
        yield answer
    finally:
        manager.stop(block=True)


def _transformers_model(directory: Path, device: torch.device) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation="sdpa")
    return model.to(device).eval()


def free() -> None:
    """Give back to the device what the contender before held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
