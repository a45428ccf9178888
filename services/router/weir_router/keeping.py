"""What a request's retained stream knows of it, and is to know: enough for another router to go on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from weir.inference.v1.stream_pb2 import OutputFinished

if TYPE_CHECKING:
    from weir_router.request import EncodedPrompt


@dataclass(frozen=True, slots=True)
class Drawing:
    """How an executor draws, as it says of itself: see `ExecutorModel`."""

    numerics: str = ""
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """What another router has done of it.

    `token_ids`: of each output, what its client can be given without it. `finished`: the outputs that are over.
    """

    prompt: EncodedPrompt
    drawing: Drawing
    token_ids: Mapping[int, Sequence[int]]
    finished: Mapping[int, OutputFinished]
    attempts: int


OnPrompt = Callable[["EncodedPrompt", Drawing], None]


def _ignore(prompt: EncodedPrompt, drawing: Drawing) -> None:
    """For a request that nobody else will go on with."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """`on_prompt` is called once, before the first token."""

    begun: Begun | None = None
    on_prompt: OnPrompt = _ignore


NOT_KEPT: Final = Keeping()
