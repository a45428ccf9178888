"""One projection and its adapters, against the same products done row by row."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_executor.paged.lora.layers import AdaptedTokens, Pair, Sites
from weir_executor.paged.model.layers import DenseLinear

_IN, _OUT = 6, 5


def _pair(seed: int, rank: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(rank, _IN, generator=generator), torch.randn(_OUT, rank, generator=generator))


@settings(max_examples=50)
@given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_each_token_passes_through_its_own_adapter_or_through_none(owners: list[int], seed: int) -> None:
    """Owner 0 is nobody, 3 an adapter that leaves this projection alone."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(len(owners), _IN, generator=generator), torch.randn(_OUT, _IN, generator=generator)
    pairs: dict[int, Pair | None] = {1: _pair(seed, 2), 2: _pair(seed + 1, 4), 3: None}
    sites = Sites()
    adapted = sites.wrap(DenseLinear(weight, None), ["layers.0.q_proj"], [_OUT], _IN)
    sites.active.now = [
        AdaptedTokens([pair], torch.tensor([i for i, who in enumerate(owners) if who == owner]))
        for owner, pair in pairs.items()
        if owner in owners
    ]
    found = adapted(x)
    for row, owner in enumerate(owners):
        wanted = weight @ x[row]
        pair = pairs.get(owner)
        if pair is not None:
            wanted += pair.up @ (pair.down @ x[row])
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-4)


def test_without_adapters_in_the_step_the_numbers_are_the_bases_own() -> None:
    x, weight = torch.randn(3, _IN), torch.randn(_OUT, _IN)
    sites = Sites()
    adapted = sites.wrap(DenseLinear(weight, None), ["layers.0.q_proj"], [_OUT], _IN)
    assert torch.equal(adapted(x), DenseLinear(weight, None)(x))


def test_sites_are_the_projections_that_adapters_name_and_no_experts() -> None:
    sites, base = Sites(), DenseLinear(torch.zeros(_OUT, _IN), None)
    for names in (
        ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"],
        ["model.layers.0.mlp.experts.3.down_proj"],
        ["lm_head"],
        ["model.layers.0.mlp.gate"],
        ["model.layers.0.mlp.gate_up_proj"],
    ):
        wrapped = sites.wrap(base, names, [_OUT] * len(names), _IN)
        assert (wrapped is base) == (names[0].rpartition(".")[2] in ("lm_head", "gate") or ".experts." in names[0])
    assert [site.names[0].rpartition(".")[2] for site in sites.sites] == ["q_proj", "gate_up_proj"]
    assert all(one is not other for one, other in pairwise(sites.sites))
