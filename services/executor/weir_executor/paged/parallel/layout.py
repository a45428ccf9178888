"""Which rank holds what: `tensor` ranks share a layer's heads and features, `pipeline` stages the layers. Pure.

             stage 0: layers 0 to 15      stage 1: layers 16 to 31
part 0       rank 0 (schedules, samples)  rank 2
part 1       rank 1                       rank 3
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weir_executor.paged.model.config import ModelConfig, ModelConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Of one rank. Its layers are those from `first_layer` up to and without `end_layer`."""

    rank: int
    stage: int
    part: int
    first_layer: int
    end_layer: int


@dataclass(frozen=True, slots=True)
class Layout:
    tensor: int
    pipeline: int

    def __post_init__(self) -> None:
        assert self.tensor > 0, self
        assert self.pipeline > 0, self

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline

    @property
    def last_stage(self) -> int:
        return self.pipeline - 1

    def rank(self, stage: int, part: int) -> int:
        return stage * self.tensor + part

    def place(self, rank: int, num_layers: int) -> Place:
        """Layers are spread evenly, the later stages having one more where they do not divide."""
        stage, part = divmod(rank, self.tensor)
        first, end = (num_layers * edge // self.pipeline for edge in (stage, stage + 1))
        return Place(rank, stage, part, first, end)


def check_layout(config: ModelConfig, layout: Layout, *, splits: bool) -> None:
    """Raises `ModelConfigError` when the model cannot be spread like this."""
    if layout.tensor > 1 and not splits:
        raise ModelConfigError(f"tensor_parallel: the layers of a {config.architecture} cannot be split here")
    if layout.pipeline > config.num_layers:
        raise ModelConfigError(f"pipeline_parallel: {layout.pipeline} stages for {config.num_layers} layers")
    counts = {"attention heads": config.num_heads, "KV heads": config.num_kv_heads, **_features(config)}
    for name, count in counts.items():
        if count % layout.tensor:
            raise ModelConfigError(f"tensor_parallel: {count} {name} cannot be spread over {layout.tensor} ranks")


def part_of_config(config: ModelConfig, layout: Layout, place: Place) -> ModelConfig:
    """The model as one rank sees it: fewer heads, features and layers."""
    return replace(
        config,
        num_layers=place.end_layer - place.first_layer,
        attention=config.attention[place.first_layer : place.end_layer],
        num_heads=config.num_heads // layout.tensor,
        num_kv_heads=config.num_kv_heads // layout.tensor,
        **_part_of_mlps(config, layout, place),
    )


def _features(config: ModelConfig) -> dict[str, int]:
    """Of the families that can be split: `registry.Family.splits`."""
    features, experts = getattr(config, "intermediate_size", None), getattr(config, "experts", None)
    counts = {"features": features, "features of an expert": experts.intermediate_size if experts else None}
    return {name: count for name, count in counts.items() if count is not None}


def _part_of_mlps(config: ModelConfig, layout: Layout, place: Place) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if (features := getattr(config, "intermediate_size", None)) is not None:
        parts["intermediate_size"] = features // layout.tensor
    if (experts := getattr(config, "experts", None)) is not None:
        own = range(place.first_layer, place.end_layer)
        parts["experts"] = replace(
            experts,
            intermediate_size=experts.intermediate_size // layout.tensor,
            layers=frozenset(layer - place.first_layer for layer in experts.layers if layer in own),
        )
    return parts
