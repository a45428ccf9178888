"""Adapters packed for the native kernels. That their tokens are right is said in `test_oracle_lora.py`."""

from __future__ import annotations

import pytest
import torch

from contract.engine_contract import prompt, request
from unit.executor.native.test_decoder import ISAS
from unit.executor.test_oracle_lora import merged_greedy, run, running
from weir_executor.paged.native.adapters import NativeSites, _panels, _whole_vectors
from weir_executor.paged.native.binding import PANEL


def _linear(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize("outputs", [32, 70, 6])
def test_outputs_stand_in_the_panels_of_the_weights(outputs: int) -> None:
    up = torch.randn(outputs, 5)
    panels = _panels(up, gated=False)
    assert panels.shape == (-(-outputs // PANEL), 5, PANEL)
    flat = panels.transpose(1, 2).reshape(-1, 5)
    assert torch.equal(flat[:outputs], up)
    assert not flat[outputs:].any()


@pytest.mark.parametrize("inner", [16, 58])
def test_of_a_gated_site_half_of_each_panel_are_gates_and_half_ups(inner: int) -> None:
    up = torch.randn(2 * inner, 3)
    panels = _panels(up, gated=True).transpose(1, 2)
    half = PANEL // 2
    assert torch.equal(panels[:, :half].reshape(-1, 3)[:inner], up[:inner])
    assert torch.equal(panels[:, half:].reshape(-1, 3)[:inner], up[inner:])


def test_inputs_are_filled_up_to_whole_vectors() -> None:
    down = torch.randn(4, 70)
    assert torch.equal(_whole_vectors(down)[:, :70], down)
    assert _whole_vectors(down).shape == (4, 80)


def test_sites_are_named_in_any_order_and_projections_stay_as_they_are() -> None:
    sites = NativeSites()
    for modules in (("gate_proj", "up_proj"), ("down_proj",), ("q_proj", "k_proj", "v_proj"), ("o_proj",)) * 2:
        assert sites.wrap(_linear, [f"model.layers.0.{module}" for module in modules], [8] * len(modules), 8) is _linear
    assert sites.wrap(_linear, ["lm_head"], [8], 8) is _linear
    assert sites.places == [2, 3, 0, 1, 6, 7, 4, 5]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_adds_them(isa: str) -> None:
    with running("qwen3", "all", kernels=isa, num_threads=2) as (engine, heard):
        tokens = run(engine, heard, [request(1, prompt(40), 8, adapter="all"), request(2, prompt(40), 8)])
    assert tokens[1] == merged_greedy("qwen3", "all", tuple(prompt(40)))[:8]
    assert tokens[2] != tokens[1]


def test_beside_rounded_weights() -> None:
    """The base is rounded, the adapter is not: its tokens differ from the base's as they do without rounding."""
    with running("llama3", "all", weights="int8") as (engine, heard):
        tokens = run(engine, heard, [request(1, prompt(40), 1, adapter="all"), request(2, prompt(40), 1)])
    assert tokens[1] == merged_greedy("llama3", "all", tuple(prompt(40)))[:1]
    assert tokens[1] != tokens[2]
