"""Frequencies and scales of every rope type are those of `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from weir_executor.paged.model.config import ModelConfigError, parse_rope
from weir_executor.paged.model.rope import rope_table

_CPU = torch.device("cpu")
_HEAD_DIM, _POSITIONS = 16, 4096
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
_LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 256,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": _YARN,
    "yarn_mscale": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
    "yarn_untruncated": {**_YARN, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
    "longrope": _LONG,
}


def _table(options: dict[str, Any], num_positions: int, trained: int = _POSITIONS) -> torch.Tensor:
    return rope_table(parse_rope(options, _HEAD_DIM, trained, 10_000.0), num_positions, _CPU)


def _expected(config: Any, num_positions: int) -> torch.Tensor:
    frequencies, scale = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, _CPU, seq_len=num_positions)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    table: torch.Tensor = torch.stack((angles.cos(), angles.sin()), dim=1) * scale
    return table


def _llama(options: dict[str, Any]) -> Any:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=_POSITIONS,
        rope_parameters={"rope_theta": 10_000.0, **options},
    )


@pytest.mark.parametrize("name", _SCALINGS)
def test_a_scaled_table(name: str) -> None:
    table, expected = _table(_SCALINGS[name], 600), _expected(_llama(_SCALINGS[name]), 600)
    torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_positions", [200, 256, 257, 900])
def test_longrope_has_other_factors_beyond_its_original_length(num_positions: int) -> None:
    config = Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=_POSITIONS,
        original_max_position_embeddings=256,
        rope_parameters={"rope_theta": 10_000.0, **_LONG},
    )
    torch.testing.assert_close(_table(_LONG, num_positions), _expected(config, num_positions), rtol=1e-5, atol=1e-5)
    variant = parse_rope(_LONG, _HEAD_DIM, _POSITIONS, 10_000.0).variant(num_positions)
    assert variant == ("long" if num_positions > 256 else "short")


def test_a_default_table_turns_only_as_many_dimensions_as_it_is_told() -> None:
    table = _table({"partial_rotary_factor": 0.5}, 10)
    assert table.shape == (10, 2, 4)
    assert table[3, :, 1].tolist() == pytest.approx([torch.tensor(0.3).cos().item(), torch.tensor(0.3).sin().item()])


def test_yarn_stretches_the_longest_sequence() -> None:
    assert parse_rope(_YARN, _HEAD_DIM, 1024, 10_000.0).position_limit == 4096
    assert parse_rope(_LONG, _HEAD_DIM, 1024, 10_000.0).position_limit == 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_type": "spiral"}, "rope_type 'spiral' is not known here; known: default, dynamic, linear, llama3"),
        ({"rope_type": "linear"}, "'linear': 'factor' is missing"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "'original_max_position_embeddings' is missing"),
        ({**_LONG, "short_factor": [1.0]}, "has 1 factors for 8 pairs"),
        ({"partial_rotary_factor": 0.2}, "cannot turn 3 dimensions"),
        ({"rope_theta": "far"}, "'rope_theta' is 'far', not a finite number"),
    ],
)
def test_what_cannot_be_turned_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        _table(options, 100)
