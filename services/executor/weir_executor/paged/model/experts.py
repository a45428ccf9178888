"""A layer of many MLPs of which each token passes through a few: a mixture of experts.

    Shazeer et al., "Outrageously Large Neural Networks" (arXiv 1701.06538); Jiang et al., "Mixtral" (2401.04088)

Tokens are sorted by expert, so that each expert that is chosen at all is one MLP over consecutive rows, however many
tokens chose it; its weights are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weir_executor.paged.model.layers import Linear, Mlp
from weir_executor.paged.model.loading import load_gated_mlp, load_linear
from weir_executor.paged.model.shard import WHOLE, Shard
from weir_executor.paged.model.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    count: int
    per_token: int
    intermediate_size: int  # of one expert
    shares_sum_to_one: bool  # those of a token's experts; else they are what the router gave them among all
    layers: frozenset[int]  # the others have one MLP


@dataclass(frozen=True, slots=True)
class Experts:
    """Calls like an `Mlp`."""

    router: Linear
    experts: Sequence[Mlp]
    per_token: int
    shares_sum_to_one: bool
    shard: Shard = WHOLE

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = self._route(x)
        order = chosen.flatten().argsort(stable=True)  # of all choices, those of one token side by side
        found = self._pass_through(x.index_select(0, order // self.per_token), self._counts(chosen))
        by_choice = torch.empty_like(found).index_copy_(0, order, found)
        return self.shard.sum((by_choice.view(*chosen.shape, -1) * shares.unsqueeze(-1)).sum(dim=1))

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen experts' shares of each token's result, and who they are: [tokens, per_token] both."""
        shares, chosen = self.router(x).softmax(dim=-1, dtype=torch.float32).topk(self.per_token, dim=-1)
        if self.shares_sum_to_one:
            shares /= shares.sum(dim=-1, keepdim=True)
        return shares.to(x.dtype), chosen

    def _counts(self, chosen: torch.Tensor) -> list[int]:
        counts: list[int] = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        return counts

    def _pass_through(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Rows sorted by expert, so many for each."""
        found, first = [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                found.append(expert(rows[first : first + count]))
            first += count
        return torch.cat(found)


def load_experts(
    config: ExpertsConfig, checkpoint: Checkpoint, base: str, hidden: int, names: tuple[str, str, str]
) -> Experts:
    """`names`: what an expert's gate, up and down projections are called."""
    inner = config.intermediate_size
    return Experts(
        router=load_linear(checkpoint, [f"{base}.gate"], [config.count], hidden, bias=False),
        experts=[
            load_gated_mlp(checkpoint, f"{base}.experts.{index}", hidden, inner, names=names, summed=False)
            for index in range(config.count)
        ],
        per_token=config.per_token,
        shares_sum_to_one=config.shares_sum_to_one,
        shard=checkpoint.shard,
    )
