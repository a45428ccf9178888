"""Logits of the paged model are those of `transformers`, in float32 closely and in bfloat16 as closely as it allows."""

from __future__ import annotations

import pytest
import torch

from contract.engine_contract import prompt
from models_fixture import FAMILIES, tiny_model
from unit.executor.oracle import paged_logits, reference_logits

_TOKENS = prompt(100)


def _ours(family: str, chunks: list[int], dtype: str) -> torch.Tensor:
    return paged_logits(tiny_model(family, dtype), _TOKENS, chunks, dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [[100], [37, 1, 1, 20, 41]], ids=["whole", "chunked"])
def test_float32(family: str, chunks: list[int]) -> None:
    torch.testing.assert_close(
        _ours(family, chunks, "float32"), reference_logits(family, _TOKENS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_transformers_is(family: str) -> None:
    """Both round, at different places. Ours may be no farther from the exact logits, and no farther from theirs."""
    ours = _ours(family, [64, 1, 35], "bfloat16")
    theirs = reference_logits(family, _TOKENS, "bfloat16")
    exact = _exact_of_bfloat16_weights(family)
    their_error = (theirs - exact).square().mean().sqrt()
    assert (ours - exact).square().mean().sqrt() <= 1.25 * their_error
    assert (ours - theirs).square().mean().sqrt() <= 2 * their_error
    # Rounding may send a token to other experts, which is no longer a small difference.
    has_experts = "num_experts_per_tok" in FAMILIES[family]
    assert their_error < (0.25 if has_experts else 0.1) * exact.std()


def _exact_of_bfloat16_weights(family: str) -> torch.Tensor:
    """What the rounded weights give in float32 arithmetic."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(family, "bfloat16"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([_TOKENS])).logits[0]
        return logits
