from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.limits import Limits, decode_seconds, prefill_seconds, weights

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 320,
}


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=True, attn_implementation="eager"))


def test_weights_are_all_of_the_models_but_its_norms() -> None:
    norms = 2 * 3 * 64 + 64
    assert weights(_SHAPE) == sum(parameter.numel() for parameter in _model().parameters()) - norms


def test_a_decode_step_reads_every_weight_in_two_bytes() -> None:
    assert decode_seconds(_SHAPE, Limits(1e9, 1.0)) == 2 * weights(_SHAPE) / 1e9


def test_a_prefill_counts_what_torch_counts_less_what_nobody_sees() -> None:
    tokens = 40
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        _model()(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=1)
    whole = counted.get_total_flops()
    unseen = 3 * 2 * 2 * 64 * (tokens * (tokens - 1) // 2)  # torch multiplies the masked half, too
    unread = 2 * (tokens - 1) * (2 * 64 * 64 + 3 * 64 * 96)  # of the last layer: queries, output and MLP of all but one
    unread += 2 * 2 * 64 * (tokens * (tokens - 1) // 2)  # and what these would attend to
    rotary = 2 * 8 * tokens  # its angles are a product to torch, and a table to us
    assert 0 <= whole - unseen - unread - prefill_seconds(_SHAPE, tokens, Limits(1.0, 1.0)) <= rotary


def test_the_better_of_two_measurements_counts() -> None:
    assert Limits(1.0, 8.0).best_of(Limits(2.0, 7.0)) == Limits(2.0, 8.0)


def test_the_limits_of_this_machine_are_of_a_machine() -> None:
    """Bounds that any computer keeps: a wrong unit, or work that the compiler left out, breaks them."""
    from bench import limits

    measured = limits.measure()
    assert 1e8 < measured.bytes_per_second < 1e13
    assert 1e8 < measured.operations_per_second < 1e16
