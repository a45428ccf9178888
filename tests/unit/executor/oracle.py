"""The oracle: the same weights in `transformers`, and a plain loop around it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

from contract.engine_contract import Listener, request
from models_fixture import FAMILIES, tiny_model
from weir_executor.engine import GenerationRequest, RequestEnd
from weir_executor.paged.engine import PagedEngineConfig, load_engine

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


__all__ = ["RUNS", "reference", "reference_greedy", "reference_logits", "request", "run_paged"]
