"""The `Decoder` on CUDA: decode steps by captured graphs, each launched before the tokens of the last are known.

    host      │ schedule k │ launch k+1 │ wait for k │ emit k, schedule k+1 │ launch k+2 │ wait for k+1 │ …
    device    ·················│ step k ···········│ step k+1 ·······················│ step k+2 ·······

While a step runs, its successor is launched as it will most likely be asked for: the same rows, one token further, fed
by draws that never left the device. When the step loop does ask for a row that is under way, its token is there, or
soon will be. A row that ended meanwhile (a stop token, a cancellation, a preemption) is not asked for; its successor
wrote its KV into a block that was the sequence's own when it was launched, before anything that a later owner of the
block computes. So the loop and its scheduler know nothing of this, and every token is what it would have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from weir_executor.paged.batch import Scheduled
from weir_executor.paged.cuda.current import made_current
from weir_executor.paged.cuda.decode_step import DecodeRow, DecodeSteps, Draws
from weir_executor.paged.cuda.drawing import Asked, asked_numbers, draw
from weir_executor.paged.decoder import Decoded, Decoder
from weir_executor.paged.flat_batch import FlatBatch, side_by_side
from weir_executor.paged.sequence import Sequence as LiveSequence


class CudaDecoder:
    """`eager` takes the steps that hold more than single tokens."""

    def __init__(self, steps: DecodeSteps, eager: Decoder, block_size: int, device: torch.device) -> None:
        self._steps, self._eager, self._block_size, self._device = steps, eager, block_size, device
        self._ahead: _Flight | None = None
        self._is_warm = False

    def decode(self, batch: FlatBatch) -> Decoded:
        with made_current(self._device):
            if not self._is_warm:  # on the step thread, by the small request that the engine sends itself at its start
                self._steps.warm_up()
                self._is_warm = True
            return self._decode(batch)

    def _decode(self, batch: FlatBatch) -> Decoded:
        ahead, self._ahead = self._ahead, None
        if not batch.plain:
            return self._for_the_sampler(batch)
        known = ahead.places(batch.rows) if ahead is not None else {}
        if not known and _is_decode_step(batch):
            ahead, known = self._launch(batch), {index: index for index in range(len(batch.rows))}
        if ahead is None or not known:
            return self._draw_eagerly(batch)
        if len(known) < len(batch.rows):
            return self._draw_the_rest(batch, ahead, known)
        self._ahead = self._launch_next(batch.rows, known)
        token_ids = ahead.draws.wait()
        drawn = [token_ids[known[index]] for index in range(len(batch.rows))]
        return Decoded([token_id >= 0 for token_id in drawn], logits=None, drawn=drawn)

    # ── steps of single tokens ────────────────────────────────────────────────────────────────────────────────────────

    def _launch(self, batch: FlatBatch) -> _Flight:
        rows = [
            DecodeRow(row.first, self._blocks(row, row.first), token_id, asked=_asked(row.sequence))
            for row, token_id in zip(batch.rows, batch.token_ids, strict=True)
        ]
        return self._fly([row.sequence for row in batch.rows], rows)

    def _launch_next(self, rows: Sequence[Scheduled], places: Mapping[int, int]) -> _Flight | None:
        """The step after the one that `rows` are of, if each that goes on has a place for its next token."""
        going = [index for index, row in enumerate(rows) if _goes_on(row.sequence)]
        if not going or any(len(rows[index].blocks) * self._block_size < rows[index].first + 2 for index in going):
            return None
        next_rows = [
            DecodeRow(
                rows[index].first + 1,
                self._blocks(rows[index], rows[index].first + 1),
                source=places[index],
                asked=_asked(rows[index].sequence, ahead=1),
            )
            for index in going
        ]
        return self._fly([rows[index].sequence for index in going], next_rows)

    def _fly(self, sequences: Sequence[LiveSequence], rows: Sequence[DecodeRow]) -> _Flight:
        self._steps.launch(rows)
        return _Flight(sequences, rows, self._steps.draws(len(rows)))

    def _blocks(self, row: Scheduled, position: int) -> list[int]:
        """A copy: the sequence's own list goes on growing."""
        return row.blocks[: position // self._block_size + 1]

    def _for_the_sampler(self, batch: FlatBatch) -> Decoded:
        """Somebody needs the logits: the sampler draws, and the step after waits for it."""
        if not _is_decode_step(batch):
            return self._eager.decode(batch)
        rows = [
            DecodeRow(row.first, row.blocks, token_id)
            for row, token_id in zip(batch.rows, batch.token_ids, strict=True)
        ]
        logits = self._steps.launch(rows)
        best = self._steps.draws(len(rows)).wait()
        return Decoded([token_id >= 0 for token_id in best], logits)

    # ── steps with chunks in them ─────────────────────────────────────────────────────────────────────────────────────

    def _draw_eagerly(self, batch: FlatBatch) -> Decoded:
        decoded = self._eager.decode(batch)
        if decoded.logits is None:
            return decoded
        places = [(row, ahead) for row in batch.rows for ahead in range(row.num_wanted)]
        numbers = [number for row, ahead in places for number in _asked(row.sequence, ahead)]
        asked = torch.tensor(numbers, dtype=torch.int32, device=self._device)
        drawn = torch.empty(len(places), dtype=torch.int32, device=self._device)
        draw(decoded.logits, asked, drawn)
        token_ids: list[int] = drawn.tolist()
        left = iter(token_ids)
        lowest = [min(islice(left, row.num_wanted), default=0) for row in batch.rows]
        sound = [is_sound and token_id >= 0 for is_sound, token_id in zip(decoded.sound, lowest, strict=True)]
        return replace(decoded, sound=sound, logits=None, drawn=token_ids)

    def _draw_the_rest(self, batch: FlatBatch, ahead: _Flight, known: Mapping[int, int]) -> Decoded:
        """Some rows are under way; those that are not are a step of their own."""
        rest = side_by_side([row for index, row in enumerate(batch.rows) if index not in known])
        decoded = self._draw_eagerly(rest)
        token_ids, sound_rest, drawn_rest = ahead.draws.wait(), iter(decoded.sound), iter(decoded.drawn or ())
        sound: list[bool] = []
        drawn: list[int] = []
        for index, row in enumerate(batch.rows):
            if index in known:
                drawn.append(token_ids[known[index]])
                sound.append(drawn[-1] >= 0)
            else:
                drawn += islice(drawn_rest, row.num_wanted)
                sound.append(next(sound_rest))
        return Decoded(sound, logits=None, drawn=drawn, hidden=decoded.hidden)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A launched step of single tokens. Holds its sequences, so that none of them is taken for another."""

    sequences: Sequence[LiveSequence]
    rows: Sequence[DecodeRow]
    draws: Draws

    def places(self, scheduled: Sequence[Scheduled]) -> dict[int, int]:
        """Which of the scheduled rows are these very ones, in the same blocks: their index → their place here."""
        here = {id(sequence): place for place, sequence in enumerate(self.sequences)}
        found = {}
        for index, row in enumerate(scheduled):
            place = here.get(id(row.sequence))
            if place is not None and _is_same(self.rows[place], row):
                found[index] = place
        return found


def _is_same(launched: DecodeRow, asked_for: Scheduled) -> bool:
    return (
        (launched.first, 1, 1) == (asked_for.first, asked_for.count, asked_for.num_wanted)
        # A sequence that was preempted and came back may hold other blocks.
        and asked_for.blocks[: len(launched.blocks)] == launched.blocks
    )


def _is_decode_step(batch: FlatBatch) -> bool:
    """Whether all rows are single tokens whose logits are wanted."""
    return len(batch.wanted) == len(batch.rows) == len(batch.token_ids) and not batch.pooled


def _goes_on(sequence: LiveSequence) -> bool:
    """Whether a draw leaves it room for another, if it is no stop token."""
    return sequence.num_generated + 1 < sequence.live.request.max_tokens


def _asked(sequence: LiveSequence, ahead: int = 0) -> list[int]:
    """Of the token that follows the sequence's own and so many more."""
    return asked_numbers([Asked(sequence.sampling, sequence.output_index, len(sequence.token_ids) + ahead)])
