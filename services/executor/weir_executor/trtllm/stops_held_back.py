"""A logits processor that runs in the engine's own processes: no stop token before it is time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StopsHeldBack:
    """`length`: of prompt and output together, from which on these tokens may be drawn."""

    token_ids: tuple[int, ...]
    length: int

    def __call__(
        self, _request_id: int, logits: Any, token_ids: Sequence[Sequence[int]], stream_ptr: int | None, _client_id: Any
    ) -> None:
        """`logits` [..., vocabulary], changed in place on the stream of this address; None: on the current one."""
        if len(token_ids[0]) >= self.length:
            return
        if stream_ptr is None:
            logits[..., list(self.token_ids)] = -math.inf
            return
        import torch  # noqa: PLC0415  # there wherever TensorRT-LLM is

        with torch.cuda.stream(torch.cuda.ExternalStream(stream_ptr)):  # type: ignore[no-untyped-call]
            logits[..., list(self.token_ids)] = -math.inf
