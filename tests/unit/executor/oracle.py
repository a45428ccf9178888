"""The oracle: the same weights in `transformers`, and a plain loop around it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from contract.engine_contract import Listener, request
from models_fixture import FAMILIES, tiny_model
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.sequence import LiveRequest, Sequence
from weir_executor.request import GenerationRequest
from weir_executor.step_output import RequestEnd

transformers.utils.logging.disable_progress_bar()

# Families that the native kernels compute; all are computed by PyTorch, too.
_NATIVE = ("llama", "mistral", "phi3", "qwen2", "qwen3")
RUNS = [(family, "torch") for family in FAMILIES]
RUNS += [(family, "auto") for family in FAMILIES if family.startswith(_NATIVE) and "moe" not in family]


@cache
def reference(family: str, dtype: str = "float32") -> Any:
    """The tiny model as `transformers` runs it. Every weight must have found its place there."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_model(family, dtype), dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def reference_logits(family: str, token_ids: list[int], dtype: str = "float32") -> torch.Tensor:
    """[tokens, vocabulary] in float32."""
    with torch.inference_mode():
        logits: torch.Tensor = reference(family, dtype)(torch.tensor([token_ids])).logits[0]
        return logits.float()


@cache
def _greedy(family: str, token_ids: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    tokens = list(token_ids)
    for _ in range(max_tokens):
        tokens.append(int(reference_logits(family, tokens)[-1].argmax()))
    return tuple(tokens[len(token_ids) :])


def reference_greedy(family: str, token_ids: list[int], max_tokens: int) -> list[int]:
    """The whole sequence anew for every token: no cache, no stopping, nothing to get wrong."""
    return list(_greedy(family, tuple(token_ids), max_tokens))


def paged_logits(model_dir: Path, token_ids: list[int], chunks: list[int], dtype: str = "float32") -> torch.Tensor:
    """All logits of a sequence, computed chunk by chunk over scattered blocks."""
    config, kind, device = load_config(model_dir), getattr(torch, dtype), torch.device("cpu")
    blocks = [31, 7, 30, 2, 15, 9, 22]
    assert sum(chunks) == len(token_ids) <= 16 * len(blocks)
    with torch.inference_mode():
        model = load_model(model_dir, config, 512, kind, device)
        attention = TorchAttention(KvCache(config, 40, 16, kind, device), config.attention)
        live = LiveRequest(request(0, token_ids), 0, frozenset(), shares_blocks=False, submitted_at=0.0)
        sequence = Sequence(live, 0, list(token_ids), [], blocks=blocks)
        parts, first = [], 0
        for count in chunks:
            attention.plan([Scheduled(sequence, first, count)])
            ids, positions = torch.tensor(token_ids[first : first + count]), torch.arange(first, first + count)
            parts.append(model.logits(model.forward(ids, positions, attention.attend)))
            first += count
    return torch.cat(parts)


def run_paged(
    family: str, requests: list[GenerationRequest], kernels: str = "torch", **options: Any
) -> tuple[dict[int, list[int]], dict[int, RequestEnd]]:
    """All requests at once through one paged engine: the first output's tokens and the end of each."""
    defaults: dict[str, Any] = {"num_blocks": 64, "num_threads": 1, "check_integrity": True, "kernels": kernels}
    engine, heard = load_engine(PagedEngineConfig(tiny_model(family), **{**defaults, **options})), Listener()
    engine.start(heard)
    try:
        for generation in requests:
            engine.submit(generation)
        heard.wait_for_ends(*(generation.key for generation in requests))
        assert not heard.wrongs, heard.wrongs
        return {generation.key: heard.tokens[generation.key, 0] for generation in requests}, heard.ends
    finally:
        engine.close()


__all__ = ["RUNS", "paged_logits", "reference", "reference_greedy", "reference_logits", "request", "run_paged"]
