"""A mixture of experts against the formula, token by token; and its work: one pass for each expert that is chosen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from weir_executor.paged.model.experts import Experts
from weir_executor.paged.model.layers import Linear, Mlp, linear

_HIDDEN, _INNER, _COUNT = 12, 20, 7


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _counted(weight: torch.Tensor, index: int, calls: Counter[int]) -> Linear:
    project = linear(weight)

    def call(x: torch.Tensor) -> torch.Tensor:
        assert len(x)
        calls[index] += 1
        return project(x)

    return call


def _experts(per_token: int, *, shares_sum_to_one: bool, calls: Counter[int]) -> Experts:
    ups = [_counted(_draw(2 * _INNER, _HIDDEN, seed=10 + i), i, calls) for i in range(_COUNT)]
    return Experts(
        router=linear(_draw(_COUNT, _HIDDEN, seed=1)),
        experts=[Mlp(up, linear(_draw(_HIDDEN, _INNER, seed=30 + i))) for i, up in enumerate(ups)],
        per_token=per_token,
        shares_sum_to_one=shares_sum_to_one,
    )


@pytest.mark.parametrize("shares_sum_to_one", [True, False])
@pytest.mark.parametrize("per_token", [1, 2, _COUNT])
@pytest.mark.parametrize("num_tokens", [1, 2, 40])
def test_each_token_is_mixed_from_its_own_experts(num_tokens: int, per_token: int, shares_sum_to_one: bool) -> None:
    calls: Counter[int] = Counter()
    layer = _experts(per_token, shares_sum_to_one=shares_sum_to_one, calls=calls)
    tokens = _draw(num_tokens, _HIDDEN, seed=2)
    mixed = layer(tokens)
    assert set(calls.values()) == {1}
    assert len(calls) <= num_tokens * per_token
    for token, found in zip(tokens, mixed, strict=True):
        chances = layer.router(token).exp() / layer.router(token).exp().sum()
        best = sorted(range(_COUNT), key=lambda i: -float(chances[i]))[:per_token]
        whole = sum(float(chances[i]) for i in best) if shares_sum_to_one else 1.0
        parts = [layer.experts[i](token.unsqueeze(0))[0] * float(chances[i]) / whole for i in best]
        torch.testing.assert_close(found, torch.stack(parts).sum(dim=0), rtol=1e-4, atol=1e-3)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    layer = _experts(2, shares_sum_to_one=True, calls=Counter())
    tokens = _draw(30, _HIDDEN, seed=3)
    alone = torch.cat([layer(token.unsqueeze(0)) for token in tokens])
    torch.testing.assert_close(layer(tokens), alone, rtol=1e-5, atol=1e-4)
