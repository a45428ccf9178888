"""A decode step as the device runs it, without the host: next tokens in, next tokens out.

    previous draws ─┐
    token ids ──────┴▶ embed ▶ layers ▶ logits ▶ draw ─▶ draws ─▶ pinned host memory, when somebody waits for them

A row's token is known to the host, or is what the step before drew for one of its rows: so a step can be launched
before the tokens of the one before are known. Batches are padded to a few sizes, and the work of each is captured once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from weir_executor.paged.cuda.attention import DeviceTables, TritonAttention
from weir_executor.paged.cuda.drawing import ASKED, GREEDY, draw
from weir_executor.paged.cuda.graphs import Capturer, batch_sizes, size_for
from weir_executor.paged.cuda.staging import Staging
from weir_executor.paged.cuda.tables import tables
from weir_executor.paged.model.decoder_model import DecoderModel

_log = logging.getLogger(__name__)
_HOST = -1  # as a source: the token is the host's
# Numbers per row, in the order of the parts: token, source, position, what is asked, slot, row, tile. Block ids follow.
_PER_ROW = (1, 1, 1, ASKED, 1, 4, 2)
_ALIGNMENT = 4 * (len(_PER_ROW) + 1)
_DRAWS_IN_FLIGHT = 3  # host copies: of the step that is read, of the one under way, and of the one being launched


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One token of one sequence, at index `first`, and how the next is drawn."""

    first: int
    blocks: Sequence[int]
    token_id: int = 0
    source: int = _HOST  # the row of the step before whose draw is the token
    asked: Sequence[int] = field(default_factory=lambda: GREEDY)

    @property
    def count(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Draws:
    """A launched step's tokens: [rows] int32 on their way to the host."""

    host: torch.Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> list[int]:
        """Token ids; -1 where a row's logits are not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        token_ids: list[int] = self.host.tolist()
        return token_ids


class DecodeSteps:
    """Launches steps of at most `max_rows` rows, each of at most `max_blocks` blocks. Used by the step thread only."""

    def __init__(
        self, model: DecoderModel, attention: TritonAttention, max_rows: int, max_blocks: int, capturer: Capturer | None
    ) -> None:
        self._model, self._attention, self._capturer = model, attention, capturer
        self._device = attention.cache.device
        self.sizes = batch_sizes(max_rows)
        capacity = max_rows * (sum(_PER_ROW) + max_blocks) + _ALIGNMENT
        self._staging = Staging(capacity, self._device)
        self._drawn = torch.zeros(max_rows, dtype=torch.int32, device=self._device)
        pinned = self._device.type == "cuda"
        self._hosts = [torch.zeros(max_rows, dtype=torch.int32, pin_memory=pinned) for _ in range(_DRAWS_IN_FLIGHT)]
        self._turn = 0
        self._captured: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}

    def warm_up(self) -> None:
        """Capture every size, the largest first: the smaller ones find their memory there.

        What cannot be captured runs uncaptured, which gives the same tokens, slower.
        """
        if self._capturer is None:
            return
        for size in reversed(self.sizes):
            self._upload([], size)
            try:
                self._captured[size] = self._capturer.capture(lambda size=size: self._compute(size))  # type: ignore[misc]
            except Exception as error:
                _log.warning("decode steps run uncaptured: %s", error)
                self._captured.clear()
                self._capturer = None
                return
        _log.info("decode steps are captured for %d batch sizes up to %d", len(self.sizes), self.sizes[-1])

    def launch(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """Queue a step. Returns its logits, [rows, vocabulary] float32, valid until the next launch."""
        size = size_for(self.sizes, len(rows))
        self._upload(rows, size)
        if size in self._captured:
            replay, logits = self._captured[size]
            for layer in range(self._attention.cache.block_shape[0]):
                self._attention.cache.before_layer(layer)  # a replay asks for none
            replay()
        else:
            logits = self._compute(size)
        return logits[: len(rows)]

    def draws(self, count: int) -> Draws:
        """Of the step launched last: begin to copy its tokens to the host."""
        self._turn = (self._turn + 1) % _DRAWS_IN_FLIGHT
        host = self._hosts[self._turn][:count]
        host.copy_(self._drawn[:count], non_blocking=True)
        on_cuda = self._device.type == "cuda"
        return Draws(host, torch.cuda.current_stream().record_event() if on_cuda else None)

    def _upload(self, rows: Sequence[DecodeRow], size: int) -> None:
        padding = size - len(rows)
        told = tables(rows, self._attention.cache.block_size, self._attention.few_queries, 1)
        told.pad_to(size)
        asked = [number for row in rows for number in row.asked] + [*GREEDY] * padding
        self._staging.upload(
            [
                [row.token_id for row in rows] + [0] * padding,
                [row.source for row in rows] + [_HOST] * padding,
                [row.first for row in rows] + [0] * padding,
                asked,
                told.slots,
                told.rows,
                told.few,
                told.block_ids,
            ]
        )

    def _compute(self, size: int) -> torch.Tensor:
        """What is captured: reads the uploaded parts where they lie, whatever they are by then."""
        lengths = [size * numbers for numbers in _PER_ROW]
        token_ids, sources, positions, asked, slots, rows, few, block_ids = self._staging.views_and_rest(lengths)
        self._attention.use(DeviceTables(slots, rows, few, few[:0], block_ids, size))
        # A draw that is none (its logits were not finite) still needs a token to go on with; nobody will see it.
        drawn = self._drawn.index_select(0, sources.clamp(min=0)).clamp_(min=0)
        token_ids = torch.where(sources < 0, token_ids, drawn)
        hidden = self._model.forward(token_ids, positions, self._attention.attend)
        logits = self._model.logits(hidden)
        draw(logits, asked, self._drawn)
        return logits
