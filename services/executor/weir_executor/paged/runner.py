"""Batch → tensors → tokens: the worker behind the step loop.

write stored blocks → token ids, positions and the attention plan, once per step → forward → logits of the rows that
sample → draw
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from weir_chassis.errors import Internal
from weir_executor.engine import StoredPrefix
from weir_executor.paged.attention import AttentionBackend
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.llama import LlamaModel
from weir_executor.paged.sampler import SampleRow, sample
from weir_executor.paged.scheduler import Batch, Scheduled
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.worker import Draw, Result

_NOT_FINITE = "the model's output for this request is not finite"


class ModelRunner:
    """See `Worker`. Works on whatever device the model and the cache live on."""

    def __init__(
        self,
        model: LlamaModel,
        cache: KvCache,
        attention: AttentionBackend,
        device: torch.device,
        num_threads: int | None = None,
    ) -> None:
        self._model, self._cache, self._attention, self._device = model, cache, attention, device
        self._num_threads = num_threads

    def begin(self) -> None:
        use_threads(self._num_threads)

    def run(self, batch: Batch) -> Sequence[Result]:
        with torch.inference_mode():
            for load in batch.loads:
                self._cache.write_block(load.block_id, load.payload)
            rows = in_row_order(batch.scheduled)
            last = self._forward(rows)
            results = self._results(rows, last)
        by_sequence = {id(row.sequence): result for row, result in zip(rows, results, strict=True)}
        return [by_sequence[id(scheduled.sequence)] for scheduled in batch.scheduled]

    def count_usable(self, stored: StoredPrefix) -> int:
        for index, payload in enumerate(stored.blocks):
            if not self._cache.is_sound(payload):
                return index
        return len(stored.blocks)

    def read_blocks(self, block_ids: Sequence[int]) -> Sequence[bytes]:
        return self._cache.read_blocks(block_ids)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        self._cache.clear_blocks(block_ids)

    def is_fatal(self, error: Exception) -> bool:
        """A device error leaves the CUDA context unusable; running out of memory does not."""
        return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)

    def close(self) -> None:
        """A step ends by itself, soon."""

    def _forward(self, rows: Sequence[Scheduled]) -> torch.Tensor:
        """The hidden state of each row's last token."""
        token_ids: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for row in rows:
            token_ids += row.sequence.token_ids[row.first : row.first + row.count]
            positions += range(row.first, row.first + row.count)
            ends.append(len(token_ids) - 1)
        self._attention.plan(rows)
        hidden = self._model.forward(self._tensor(token_ids), self._tensor(positions), self._attention.attend)
        return hidden if len(ends) == len(token_ids) else hidden.index_select(0, self._tensor(ends))

    def _results(self, rows: Sequence[Scheduled], last: torch.Tensor) -> list[Result]:
        """Draws for the rows that sample; an error for those whose numbers are no numbers.

        A sum is finite only if every term is; what was not finite at an earlier token of a chunk shows in its last.
        """
        sampling = [index for index, row in enumerate(rows) if row.samples]
        sound = last.sum(dim=-1, dtype=torch.float32).isfinite()
        draws: list[Draw] = []
        if sampling:
            where = self._tensor(sampling)
            logits = self._model.logits(last.index_select(0, where))
            sound_logits = logits.sum(dim=-1).isfinite()
            sound[where] &= sound_logits
            if not bool(sound_logits.all()):
                logits[~sound_logits] = 0.0  # anything that can be drawn from; the draw is not used
            draws = sample(logits, [_sample_row(rows[index].sequence) for index in sampling])
        drawn = dict(zip(sampling, draws, strict=True))
        return [drawn.get(i) if is_sound else Internal(_NOT_FINITE) for i, is_sound in enumerate(sound.tolist())]

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def use_threads(num_threads: int | None) -> None:
    """How many threads PyTorch computes with when called from this one; None leaves it its own choice."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def in_row_order(scheduled: Sequence[Scheduled]) -> list[Scheduled]:
    """Single tokens first: those that begin with the same block side by side, and shorter before longer, so that what
    is read together is shared or of like length."""
    decodes = [s for s in scheduled if s.count == 1]
    beginnings = Counter(s.sequence.blocks[0] for s in decodes)

    def order(row: Scheduled) -> tuple[int, int]:
        beginning = row.sequence.blocks[0]
        return (beginning if beginnings[beginning] > 1 else -1, row.first)

    return sorted(decodes, key=order) + [s for s in scheduled if s.count > 1]


def _sample_row(sequence: LiveSequence) -> SampleRow:
    return SampleRow(
        sequence.sampling, sequence.output_index, sequence.token_ids, sequence.num_prompt, sequence.forbidden_token_ids
    )
