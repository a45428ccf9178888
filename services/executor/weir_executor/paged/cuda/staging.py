"""Lists of whole numbers → tensors on the device, all in one copy that nobody waits for.

host    | part 0 | part 1 | … |    pinned; two of them take turns, so that one is filled while the other is read
device  | part 0 | part 1 | … |    one, at one address: a captured graph reads it again and again
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALIGNED = 4  # numbers: kernels are compiled for addresses that are multiples of 16 bytes
_TURNS = 2


class Staging:
    """`capacity` numbers at most, alignment included. Used by the step thread only."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self.numbers = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._hosts = [torch.zeros(capacity, dtype=torch.int32, pin_memory=self._on_cuda) for _ in range(_TURNS)]
        self._read: list[torch.cuda.Event | None] = [None] * _TURNS
        self._turn = 0

    def views(self, lengths: Sequence[int]) -> list[torch.Tensor]:
        """Where parts of so many numbers lie on the device."""
        return [self.numbers[begin : begin + length] for begin, length in zip(_begins(lengths), lengths, strict=True)]

    def views_and_rest(self, lengths: Sequence[int]) -> list[torch.Tensor]:
        """Like `views`, and last a part that takes all the room there is after them."""
        begin = _begins([*lengths, 0])[-1]
        return [*self.views(lengths), self.numbers[begin:]]

    def upload(self, parts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The parts on the device, valid until the next upload. Work already queued there sees the parts before."""
        lengths = [len(part) for part in parts]
        begins = _begins(lengths)
        used = begins[-1] + lengths[-1]
        assert used <= len(self.numbers), f"{used} numbers do not fit {len(self.numbers)}"
        host = self._next_host()
        for begin, part in zip(begins, parts, strict=True):
            host[begin : begin + len(part)] = torch.tensor(part, dtype=torch.int32)
        self.numbers[:used].copy_(host[:used], non_blocking=True)
        if self._on_cuda:
            self._read[self._turn] = torch.cuda.current_stream().record_event()
        return self.views(lengths)

    def _next_host(self) -> torch.Tensor:
        self._turn = (self._turn + 1) % _TURNS
        event = self._read[self._turn]
        if event is not None:
            event.synchronize()
        return self._hosts[self._turn]


def _begins(lengths: Sequence[int]) -> list[int]:
    begins, begin = [], 0
    for length in lengths:
        begins.append(begin)
        begin += -(-length // _ALIGNED) * _ALIGNED
    return begins
