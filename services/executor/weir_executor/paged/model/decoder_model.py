"""What the engine asks of a model, and what all of them do alike. How keys and values are kept is `Attend`'s affair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.layers import Linear, Norm, Rotation

# (layer index, q, k, v) → the heads' outputs; all [tokens, heads, head_dim]. Writes k and v to the cache on the way.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class DecoderModel(ABC):
    """Weights and the forward pass of one family."""

    config: ModelConfig
    embedding: torch.Tensor  # [vocabulary, hidden]
    norm: Norm  # the last one; what embeddings are pooled from comes out of it
    lm_head: Linear

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Hidden states of all tokens, [tokens, hidden], before the last norm. Ids and positions: [tokens] int64."""
        return self.run_layers(self.embed(token_ids, positions), positions, attend)

    @abstractmethod
    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What the first layer is given."""

    @abstractmethod
    def run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """All layers this model holds: in a pipeline, those of one stage."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the given rows only: the vocabulary is the widest projection of all. In float32, for sampling."""
        return self.lm_head(self.norm(hidden)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """One layer's attention. A layer of a family adds its norms and its MLP to these."""

    qkv: Linear  # rows: the query heads, the key heads, the value heads
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    output: Linear

    def attend(
        self, index: int, config: ModelConfig, hidden: torch.Tensor, rotation: Rotation | None, attend: Attend
    ) -> torch.Tensor:
        """What attention adds to the residual stream, for the normed `hidden` of layer `index`."""
        heads = self.qkv(hidden).view(hidden.shape[0], -1, config.head_dim)
        turning, values = heads[:, : -config.num_kv_heads], heads[:, -config.num_kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = turning[:, : config.num_heads], turning[:, config.num_heads :]
            turning = torch.cat((self.query_norm(queries), self.key_norm(keys)), dim=1)
        if rotation is not None:
            turning = rotation(turning)
        queries, keys = turning[:, : config.num_heads], turning[:, config.num_heads :]
        return self.output(attend(index, queries, keys, values).flatten(1))
