"""What a request is on, and what has come of it: the seams to those who draw its tokens and make text of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from weir.executor.v1.executor_pb2 import RequestEnd, Submit
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, TokenBatch
from weir.inference.v1.stream_pb2 import Receipt
from weir.postprocess.v1.postprocess_pb2 import Open
from weir_chassis.errors import WeirError
from weir_router.fleet.outstanding import Reservation
from weir_router.fleet.views import Price
from weir_router.streams.executor_stream import TokenLane

if TYPE_CHECKING:
    from weir_router.attempt import Attempt


class Drawer(Protocol):
    """Where tokens are drawn: an executor's stream, or a call to a worker that takes all of a request."""

    address: str

    @property
    def is_open(self) -> bool: ...
    def submit(self, submit: Submit, sink: Attempt) -> None: ...
    def abort_output(self, handle: int, output_index: int) -> None: ...
    def withdraw(self, handle: int) -> None: ...


class Lane(TokenLane, Protocol):
    """Where tokens become text: a postprocess stream, or that same call, whose tokens are text already."""

    address: str

    @property
    def is_open(self) -> bool: ...
    def open(self, request: Open, sink: Attempt) -> None: ...
    def replay(self, batch: TokenBatch) -> None: ...
    def finish(
        self, handle: int, output_index: int, reason: FinishReason.ValueType, *, ends_with_stop_token: bool
    ) -> None: ...
    def close(self, handle: int) -> None: ...
    def done(self, handle: int) -> None: ...


class WholeCall(Drawer, Lane, Protocol):
    """Both in one."""


@dataclass(slots=True)
class Progress:
    """What a request has come to. Times are monotonic seconds."""

    accepted_at: float | None = None
    first_delta_at: float | None = None
    last_delta_at: float = 0.0
    # All tokens are drawn; all text is made of them. A stop string may make the second come first.
    drawn_at: float | None = None
    written_at: float | None = None
    delivered_tokens: int = 0
    # Of the executor that had it last, and of the one that computed its prompt for others, if there was one.
    end: RequestEnd | None = None
    first_end: RequestEnd | None = None
    # Addresses of the executors that have had it, in order, and what each of them has done.
    executors: tuple[str, ...] = ()
    legs: list[Leg] = field(default_factory=list)
    # Whoever has it now takes all of it, and counts itself; then what it is, and the receipt of another router.
    delegated: bool = False
    version: ModelVersion | None = None
    told: Receipt | None = None
    # A second executor was asked, too, because the first was slow or stalled.
    hedged: bool = False


@dataclass(slots=True)
class Leg:
    """One executor that a request is on, what it may still cost there, and what it has drawn."""

    executor: Drawer
    reservation: Reservation
    price: Price | None = None
    drawn_tokens: int = 0
    # Not yet known to be computed.
    prompt_tokens: int = 0
    # It has said something of the answer.
    has_spoken: bool = False

    def note_prefilled(self) -> None:
        self.reservation.spend(self.prompt_tokens)
        self.reservation.prefilled()
        self.prompt_tokens = 0


@dataclass(frozen=True, slots=True)
class Setback:
    """A worker, and why the request cannot stay with it."""

    worker: str
    error: WeirError
