"""Who holds what: each layer, head and feature on one rank of each kind, and what cannot be spread is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_fixture import tiny_model
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.parallel.layout import Layout, check_layout, part_of_config


@given(st.integers(1, 8), st.integers(1, 8), st.integers(8, 80))
def test_every_layer_is_on_one_stage_and_every_rank_has_its_place(tensor: int, pipeline: int, num_layers: int) -> None:
    layout = Layout(tensor, pipeline)
    places = [layout.place(rank, num_layers) for rank in range(layout.num_ranks)]
    assert [layout.rank(place.stage, place.part) for place in places] == list(range(layout.num_ranks))
    for part in range(tensor):
        stages = [place for place in places if place.part == part]
        assert [layer for p in stages for layer in range(p.first_layer, p.end_layer)] == list(range(num_layers))
        sizes = [place.end_layer - place.first_layer for place in stages]
        assert max(sizes) - min(sizes) <= 1


def test_a_part_has_its_share_of_heads_features_and_layers() -> None:
    config = load_config(tiny_model("gemma3"))
    layout = Layout(tensor=2, pipeline=3)
    part = part_of_config(config, layout, layout.place(3, config.num_layers))
    assert (part.num_heads, part.num_kv_heads) == (config.num_heads // 2, config.num_kv_heads // 2)
    assert part.num_layers == len(part.attention) == layout.place(3, config.num_layers).end_layer - 1
    assert part.attention == config.attention[1 : 1 + part.num_layers]
    assert part.hidden_size == config.hidden_size


@pytest.mark.parametrize(
    ("layout", "splits", "wrong"),
    [
        (Layout(2, 1), False, "tensor_parallel: the layers of a Qwen3ForCausalLM cannot be split here"),
        (Layout(1, 4), True, "pipeline_parallel: 4 stages for 3 layers"),
        (Layout(4, 1), True, "tensor_parallel: 6 attention heads cannot be spread over 4 ranks"),
        (Layout(3, 1), True, "tensor_parallel: 2 KV heads cannot be spread over 3 ranks"),
    ],
)
def test_what_cannot_be_spread_is_refused_by_name(layout: Layout, splits: bool, wrong: str) -> None:
    with pytest.raises(ModelConfigError) as refusal:
        check_layout(load_config(tiny_model("qwen3")), layout, splits=splits)
    assert str(refusal.value) == wrong
