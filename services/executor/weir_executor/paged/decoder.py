"""The seam between the runner and a device: what turns a step's tokens into logits and keeps their KV.

A new device is a new `Decoder`, with `KvBlocks` in the layout that suits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from weir_executor.paged.attention import AttentionBackend
from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.model.decoder_model import DecoderModel


class Wanted(Protocol):
    """What a step asks of the hidden states: see `FlatBatch`."""

    @property
    def ends(self) -> list[int]: ...

    @property
    def wanted(self) -> list[int]: ...

    @property
    def pooled(self) -> list[int]: ...


@dataclass(slots=True)
class Decoded:
    """What a step came to. `best` or `drawn` may stand in for `logits` when the batch asks for no more."""

    sound: Sequence[bool]  # per row: its last token's hidden state is finite; with `best` or `drawn`, its logits too
    logits: torch.Tensor | None  # [wanted, vocabulary] in float32; the receiver may change it
    best: torch.Tensor | None = None  # [wanted] in int64: the highest logit's token, the lowest id among equals
    drawn: Sequence[int] | None = None  # [wanted]: what the sampler would draw, if the batch is plain; -1: not sound
    hidden: torch.Tensor | None = None  # [pooled, hidden_size] in float32, after the last norm; None when none pools


class Decoder(Protocol):
    """Computes a step. Called on the step thread only."""

    def decode(self, batch: FlatBatch) -> Decoded:
        """Write the KV of all tokens; give the logits of those that are wanted, the hidden states of those pooled."""


class KvBlocks(Protocol):
    """The memory behind block ids, as far as it is read and written from outside a step.

    A payload is a block's keys and values of all layers in the order that `KV_LAYOUT` names, whatever the order in
    memory is.
    """

    @property
    def block_bytes(self) -> int: ...

    @property
    def reads_anywhere(self) -> bool:
        """Whether `read_blocks` may be called on any thread, beside a step that writes other blocks."""

    def read_blocks(self, block_ids: Sequence[int]) -> Sequence[bytes]:
        """The payloads of these blocks, copied out."""

    def write_blocks(self, loads: Sequence[BlockLoad]) -> None:
        """The decoder's next step sees them, each in a block of its own."""

    def is_sound(self, payload: bytes | memoryview) -> bool:
        """Whether a payload may be written: of the right length, and all finite."""

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        """Make them hold finite numbers again."""


class DeviceLostError(RuntimeError):
    """What computes is of no use any more: no step can follow this one."""


class TorchDecoder:
    """PyTorch operations, one after the other; on whatever device the model and the cache live on."""

    def __init__(self, model: DecoderModel, attention: AttentionBackend, device: torch.device) -> None:
        self._model, self._attention, self._device = model, attention, device

    def decode(self, batch: FlatBatch) -> Decoded:
        self._attention.plan(batch.rows)
        hidden = self._model.forward(
            self._tensor(batch.token_ids), self._tensor(batch.positions), self._attention.attend
        )
        return conclude(self._model, batch, hidden)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def conclude(model: DecoderModel, batch: Wanted, hidden: torch.Tensor) -> Decoded:
    """From the hidden states of all tokens, [tokens, hidden_size], to what the runner asks for."""

    def at(places: list[int]) -> torch.Tensor:
        if len(places) == len(hidden):
            return hidden
        return hidden.index_select(0, torch.tensor(places, dtype=torch.int64, device=hidden.device))

    # A sum is finite only if every term is; what was not finite at an earlier token of a chunk shows in its last.
    last = at(batch.ends)
    sound = last.sum(dim=-1, dtype=torch.float32).isfinite()
    logits = model.logits(last if batch.wanted == batch.ends else at(batch.wanted)) if batch.wanted else None
    pooled = model.norm(at(batch.pooled)).float() if batch.pooled else None
    # Waiting for a device comes last, when it has all of its work.
    return Decoded(sound.tolist(), logits, hidden=pooled)
