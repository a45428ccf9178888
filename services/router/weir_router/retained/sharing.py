"""With whom a router shares its retained streams: with nobody, or with all that use the same Redis (`redis`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weir.router.v1.retained_pb2 import RetainedPrompt, RetainedRequest
from weir_chassis.errors import WeirError
from weir_router.regions import Residency
from weir_router.retained.stream import Name, RetainedStream


@dataclass(frozen=True, slots=True)
class Began:
    """`began`: this router runs it now. Else another stream has its key, or, with no `name`, has its name."""

    began: bool
    name: str = ""
    request_id: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Found:
    """`state`: "running", "done", "failed", "retry" or "gone"."""

    state: str
    owned: bool = False
    reader: int = 0
    entries: Sequence[bytes] = ()


class Keeper(Protocol):
    """Whose streams they are. Neither method waits."""

    def go_on(self, stream: RetainedStream, request: RetainedRequest, prompt: RetainedPrompt | None) -> None:
        """It has been taken over, and all that was said is in its log: runs it on."""

    def let_go(self, stream: RetainedStream, cause: WeirError) -> None:
        """It is not to be found here any more: whoever reads it is told why, and what runs of it here ends."""


class Sharing(Protocol):
    """Raises nothing: what Redis does not say in time is None, and what it is not told it is told later, if at all."""

    # Set before anything is shared.
    keeper: Keeper

    # What is run here.

    async def begin(self, stream: RetainedStream, request: RetainedRequest, residency: Residency) -> Began:
        """Before it is run. What may not go to where the store is, is shared with nobody."""

    def note_prompt(self, stream: RetainedStream, prompt: RetainedPrompt) -> None:
        """Once it is known, for a router that goes on with it."""

    def owns(self, stream: RetainedStream) -> bool:
        """Others know it, and may go on with it."""

    async def fail(self, stream: RetainedStream) -> None:
        """The next request with its name or its idempotency key begins anew, wherever it comes."""

    def forget(self, stream: RetainedStream) -> None:
        """Nobody is to find it any more: told before long, or with `tell_forgotten`."""

    async def tell_forgotten(self) -> None: ...

    # What is run elsewhere.

    async def attend(self, name: Name) -> int | None:
        """A reader takes the stream over: the how manieth that is. 0: nobody shares such a stream."""

    async def find(self, name: Name) -> Found | None:
        """Its beginning."""

    def follow(self, stream: RetainedStream, name: Name, found: Found | None = None) -> None:
        """The log of `stream` becomes that of `name`, as it grows, for as long as it is read here."""

    async def cancel(self, name: Name) -> bool | None:
        """Whoever runs it will hear of it. False: nobody shares such a stream."""

    async def close(self) -> None:
        """Gives up what still runs here, so that others take it over at once."""


class Alone:
    """Nobody."""

    keeper: Keeper

    async def begin(self, stream: RetainedStream, request: RetainedRequest, residency: Residency) -> Began:  # noqa: ARG002
        return Began(True)

    def note_prompt(self, stream: RetainedStream, prompt: RetainedPrompt) -> None:
        pass

    def owns(self, stream: RetainedStream) -> bool:  # noqa: ARG002
        return False

    async def fail(self, stream: RetainedStream) -> None:
        pass

    def forget(self, stream: RetainedStream) -> None:
        pass

    async def tell_forgotten(self) -> None:
        pass

    async def attend(self, name: Name) -> int | None:  # noqa: ARG002
        return 0

    async def find(self, name: Name) -> Found | None:  # noqa: ARG002
        return Found("gone")

    def follow(self, stream: RetainedStream, name: Name, found: Found | None = None) -> None:  # noqa: ARG002
        raise AssertionError("there is nobody to follow")

    async def cancel(self, name: Name) -> bool | None:  # noqa: ARG002
        return False

    async def close(self) -> None:
        pass
