"""Drafts by a smaller model of the same vocabulary.

It runs the rows' newest tokens first, and with them whatever else of their sequences it has not seen (see
`written.py`), then its own guesses, one after the other, all rows at once:

    pass 0   … t t t │ t t │ t                       what each row lacks → its first draft
    pass 1   a       │ b   │ c                       the first drafts    → the second ones

At temperature 0 a draft is its likeliest token. Otherwise it is drawn as the model's token will be: after the same
penalties, at the same temperature, from the same few likely tokens, with the random number of the same place. So two
models that think alike draw alike (see `verify.py`). It knows no guides and no adapters: where they decide, its drafts
stand less often.

Whatever it guesses, and whatever its KV is worth, changes no token: only how many stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.decoder import Decoded, Decoder, KvBlocks
from weir_executor.paged.flat_batch import FlatBatch, flatten, in_row_order
from weir_executor.paged.logits import SampleRow
from weir_executor.paged.sampler import sample
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.speculation.proposer import Wish
from weir_executor.paged.speculation.written import WrittenTokens

# The least of so many measurements is what a draft takes: whatever disturbs one only makes it longer.
_MEASUREMENTS = 8
# A row may lack its newest token, and the last draft before it when all drafts stood: more is catching up.
_USUAL_GAP = 2


@dataclass(frozen=True, slots=True)
class DraftLimits:
    num_blocks: int
    block_size: int
    max_len: int  # tokens of a sequence that the model can place
    max_batched_tokens: int  # in one pass


@dataclass(slots=True)
class _Guess:
    """A wish being granted."""

    sequence: LiveSequence
    most: int
    drafts: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """How many tokens there are, guesses included."""
        return len(self.sequence.token_ids) + len(self.drafts)


class DraftModel:
    """See `Proposer`."""

    def __init__(
        self, decoder: Decoder, blocks: KvBlocks, limits: DraftLimits, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._decoder, self._blocks, self._limits, self._clock = decoder, blocks, limits, clock
        self._written = WrittenTokens(limits.num_blocks, limits.block_size)
        self._seconds: deque[float] = deque(maxlen=_MEASUREMENTS)  # per draft, lately

    def note(self, batch: Batch) -> None:
        self._written.note(batch)

    def seconds_per_draft(self) -> float | None:
        return min(self._seconds, default=None)

    def propose(self, wishes: Sequence[Wish]) -> Sequence[Sequence[int]]:
        started = self._clock()
        guesses = [_Guess(wish.row.sequence, wish.most) for wish in wishes]
        with torch.inference_mode():
            gap = self._run(guesses)
        if gap <= _USUAL_GAP and (passes := max(len(guess.drafts) for guess in guesses)):
            self._seconds.append((self._clock() - started) / passes)
        return [guess.drafts for guess in guesses]

    def _run(self, guesses: Sequence[_Guess]) -> int:
        """Returns how many tokens a row lacked at most."""
        rows = self._missing([guess for guess in guesses if guess.end + guess.most <= self._limits.max_len])
        by_sequence = {id(guess.sequence): guess for guess in guesses}
        flat = flatten(rows)
        going = [by_sequence[id(row.sequence)] for row in flat.rows if row.samples]
        while flat.rows:
            going = self._pass(flat, going)
            flat, going = self._next(going)
        return max((row.count for row in rows), default=0)

    def _missing(self, guesses: Sequence[_Guess]) -> list[Scheduled]:
        """The tokens of each row that the draft model has not seen, as many as a pass may have."""
        rows, left = [], self._limits.max_batched_tokens
        for guess in guesses:
            sequence = guess.sequence
            # What was drafted into this room before, or lay there, is of other tokens.
            self._written.forget(self._written.begun(sequence.blocks, len(sequence.token_ids), guess.most))
            first = self._written.leading(sequence.blocks, sequence.num_computed)
            if count := min(len(sequence.token_ids) - first, left):
                rows.append(Scheduled(sequence, first, count))
                left -= count
        return rows

    def _pass(self, flat: FlatBatch, going: Sequence[_Guess]) -> list[_Guess]:
        """Compute, and draw one more draft for each of `going`, whose logits are wanted. Returns those still going."""
        decoded = self._decoder.decode(flat)
        for row, is_sound in zip(flat.rows, decoded.sound, strict=True):
            self._written.write(row.blocks, row.first, row.count)
            if not is_sound:
                self._blocks.clear_blocks(row.blocks)
                self._written.forget(row.blocks)
        for guess, token_id in zip(going, _draw(decoded, going), strict=True):
            guess.drafts.append(token_id)
        return [guess for guess in going if len(guess.drafts) < guess.most]

    def _next(self, going: Sequence[_Guess]) -> tuple[FlatBatch, list[_Guess]]:
        """A batch of the newest drafts, and whose they are, in its order."""
        by_sequence = {id(guess.sequence): guess for guess in going}
        rows = in_row_order([Scheduled(guess.sequence, guess.end - 1, 1) for guess in going])
        ordered = [by_sequence[id(row.sequence)] for row in rows]
        places = list(range(len(rows)))
        return FlatBatch(
            rows=rows,
            token_ids=[guess.drafts[-1] for guess in ordered],
            positions=[guess.end - 1 for guess in ordered],
            ends=places,
            wanted=places,
            best_only=all(map(_takes_the_best, ordered)),
            pooled=[],
        ), ordered


def _takes_the_best(guess: _Guess) -> bool:
    sampling = guess.sequence.sampling
    return sampling.is_plain and sampling.temperature == 0.0 and not guess.sequence.forbidden_token_ids()


def _draw(decoded: Decoded, going: Sequence[_Guess]) -> list[int]:
    if not going:
        return []
    if decoded.drawn is not None:
        return [max(0, token_id) for token_id in decoded.drawn]
    if decoded.best is not None:
        best: list[int] = decoded.best.tolist()
        return best
    assert decoded.logits is not None, "logits were wanted"
    logits = decoded.logits.nan_to_num_()
    return [draw.token_id for draw in sample(logits, [_sample_row(guess) for guess in going])]


def _sample_row(guess: _Guess) -> SampleRow:
    sequence = guess.sequence
    return SampleRow(
        sequence.sampling,
        sequence.output_index,
        token_ids=[*sequence.token_ids, *guess.drafts],
        num_prompt=sequence.num_prompt,
        forbidden=sequence.forbidden_token_ids(len(guess.drafts)),
    )
