"""One rank's share of a step: take the hidden states in, run this stage's layers, hand on.

stage 0            stage 1             rank 0
embed ─ layers ──▶ layers ─ conclude ──▶ sample
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weir_executor.paged.attention import AttentionBackend, TorchAttention
from weir_executor.paged.decoder import Decoded, conclude
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.model.decoder_model import DecoderModel
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.parallel.command import RankConfig, RunStep
from weir_executor.paged.parallel.group import Ranks
from weir_executor.paged.parallel.layout import part_of_config
from weir_executor.paged.parallel.part import Part


class Stage:
    """A model's part, its cache, and its ends of the groups. Every rank runs the same steps in the same order."""

    def __init__(self, model: DecoderModel, cache: KvCache, attention: AttentionBackend, ranks: Ranks) -> None:
        self.cache = cache
        self._model, self._attention, self._ranks = model, attention, ranks
        self._is_last = ranks.stage == ranks.layout.last_stage

    def run(self, step: FlatBatch | RunStep) -> Decoded | None:
        """What the step came to, on the ranks of the last stage."""
        self._attention.plan(step.rows)
        positions = self._tensor(step.positions)
        hidden = self._model.run_layers(self._take_in(step, positions), positions, self._attention.attend)
        if self._is_last:
            return conclude(self._model, step, hidden)
        self._ranks.send(hidden, self._ranks.rank + self._ranks.layout.tensor)
        return None

    def tell(self, step: RunStep, decoded: Decoded) -> None:
        """To rank 0, from the first rank of the last stage."""
        self._ranks.send(torch.tensor(decoded.sound, dtype=torch.uint8, device=self._ranks.device), 0)
        if step.wanted:
            assert decoded.logits is not None
            self._ranks.send(decoded.logits, 0)
        if step.pooled:
            assert decoded.hidden is not None
            self._ranks.send(decoded.hidden, 0)

    def hear(self, step: FlatBatch) -> Decoded:
        """On rank 0, what the last stage tells."""
        teller = self._ranks.layout.rank(self._ranks.layout.last_stage, part=0)
        sound: Sequence[int] = self._ranks.receive((len(step.rows),), torch.uint8, teller).tolist()
        decoded = Decoded([bool(is_sound) for is_sound in sound], logits=None)
        config = self._model.config
        if step.wanted:
            decoded.logits = self._ranks.receive((len(step.wanted), config.vocab_size), torch.float32, teller)
        if step.pooled:
            decoded.hidden = self._ranks.receive((len(step.pooled), config.hidden_size), torch.float32, teller)
        return decoded

    def _take_in(self, step: FlatBatch | RunStep, positions: torch.Tensor) -> torch.Tensor:
        if self._ranks.stage == 0:
            return self._model.embed(self._tensor(step.token_ids), positions)
        shape = (len(step.token_ids), self._model.config.hidden_size)
        return self._ranks.receive(shape, self._model.embedding.dtype, self._ranks.rank - self._ranks.layout.tensor)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._ranks.device)


def load_stage(config: RankConfig, ranks: Ranks) -> Stage:
    """Raises `ModelConfigError` or `ModelLoadError`."""
    whole: ModelConfig = load_config(config.model_dir)
    place = config.layout.place(config.rank, whole.num_layers)
    own = part_of_config(whole, config.layout, place)
    dtype: torch.dtype = getattr(torch, config.dtype)
    shard = Part(config.layout, place, ranks)
    model = load_model(config.model_dir, own, config.max_model_len, dtype, ranks.device, shard=shard)
    cache = KvCache(own, config.num_blocks, config.block_size, dtype, ranks.device)
    return Stage(model, cache, TorchAttention(cache, own.attention), ranks)
