"""Batch → flat batch → logits → tokens: the worker behind the step loop.

write stored blocks → lay the tokens side by side, once per step → decode → draw, or pool
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import torch

from weir_executor.guided.bitmask import Words
from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.decoder import Decoded, Decoder, DeviceLostError, KvBlocks
from weir_executor.paged.flat_batch import FlatBatch, flatten
from weir_executor.paged.guides import allowed_by_guides
from weir_executor.paged.logits import SampleRow
from weir_executor.paged.pooling import pool
from weir_executor.paged.sampler import sample
from weir_executor.paged.speculation.verify import accept
from weir_executor.paged.worker import Draw, NotFiniteError, Result


class ModelRunner:
    """See `Worker`. Works on whatever device the decoder and the blocks live on."""

    def __init__(
        self,
        decoder: Decoder,
        blocks: KvBlocks,
        num_threads: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check`, from any thread, raises what has made the decoder useless between steps."""
        self._decoder, self._blocks, self._num_threads = decoder, blocks, num_threads
        self.check = check

    def begin(self) -> None:
        use_threads(self._num_threads)

    def run(self, batch: Batch) -> Sequence[Result]:
        with torch.inference_mode():
            if batch.loads:
                self._blocks.write_blocks(batch.loads)
            flat = flatten(batch.scheduled)
            results = list(_results(flat, self._decoder.decode(flat)))
        by_sequence = {id(row.sequence): result for row, result in zip(flat.rows, results, strict=True)}
        return [by_sequence[id(scheduled.sequence)] for scheduled in batch.scheduled]

    def count_usable(self, stored_blocks: Sequence[bytes | memoryview]) -> int:
        for index, payload in enumerate(stored_blocks):
            if not self._blocks.is_sound(payload):
                return index
        return len(stored_blocks)

    @property
    def reads_anywhere(self) -> bool:
        return self._blocks.reads_anywhere

    def read_blocks(self, block_ids: Sequence[int]) -> Sequence[bytes]:
        return self._blocks.read_blocks(block_ids)

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        self._blocks.clear_blocks(block_ids)

    def is_fatal(self, error: Exception) -> bool:
        """A device error leaves the CUDA context unusable; running out of memory does not."""
        if isinstance(error, torch.OutOfMemoryError):
            return False
        return isinstance(error, torch.AcceleratorError | DeviceLostError)

    def close(self) -> None:
        """A step ends by itself, soon."""


def use_threads(num_threads: int | None) -> None:
    """How many threads PyTorch computes with when called from this one; None leaves it its own choice."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _results(batch: FlatBatch, decoded: Decoded) -> Iterable[Result]:
    """The draws of each row that samples, a vector for each that has pooled, an error where there can be neither."""
    allowed, dead_ends = allowed_by_guides(batch.rows)
    draws, sound = _draw(batch, decoded, allowed)
    vectors = {} if decoded.hidden is None else pool(batch.rows, decoded.hidden)
    instead: Mapping[int, Result] = {**vectors, **dead_ends}
    left = iter(draws)
    for index, row in enumerate(batch.rows):
        kept = accept(list(islice(left, row.num_wanted)), row.draft_token_ids)
        yield instead.get(index, kept) if sound[index] else NotFiniteError()


def _draw(batch: FlatBatch, decoded: Decoded, allowed: Mapping[int, Sequence[Words]]) -> tuple[list[Draw], list[bool]]:
    """What is drawn at each wanted place, and which rows are sound, their logits included."""
    sound = list(decoded.sound)
    if decoded.drawn is not None:
        return [Draw(token_id) for token_id in decoded.drawn], sound
    if decoded.best is not None:
        return [Draw(token_id) for token_id in decoded.best.tolist()], sound
    if decoded.logits is None:
        return [], sound
    logits = decoded.logits
    sound_logits = logits.sum(dim=-1).isfinite()
    if not bool(sound_logits.all()):
        logits[~sound_logits] = 0.0  # anything that can be drawn from; the draw is not used
    places = [(index, ahead) for index, row in enumerate(batch.rows) for ahead in range(row.num_wanted)]
    for (index, _), is_sound in zip(places, sound_logits.tolist(), strict=True):
        sound[index] &= is_sound
    return sample(logits, [_sample_row(batch.rows[i], ahead, allowed.get(i, ())) for i, ahead in places]), sound


def _sample_row(row: Scheduled, ahead: int, allowed: Sequence[Words]) -> SampleRow:
    """The place after the row's own tokens and so many of its drafts."""
    sequence, drafts = row.sequence, row.draft_token_ids[:ahead]
    return SampleRow(
        sequence.sampling,
        sequence.output_index,
        token_ids=[*sequence.token_ids, *drafts] if drafts else sequence.token_ids,
        num_prompt=sequence.num_prompt,
        forbidden=sequence.forbidden_token_ids(ahead),
        allowed=allowed[ahead] if ahead < len(allowed) else None,
    )
