"""The requests that this process holds, from their `Submit` to the engine's last word on them.

    PREPARING its guide is compiled, its prefix is on the way from the kvstore; the engine does not know it yet
    RUNNING   the engine has it, and owes it one `RequestEnd`
    gone      removed from here; its slot is free

`told` is apart from that: the caller has had its last word, or is no longer there to have it. A request whose deadline
passed has been told, and is still here until the engine confirms that its blocks are free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from weir_chassis.leases import Lease, LeaseLedger
from weir_executor.adapters.table import HeldAdapter
from weir_executor.request import GenerationRequest
from weir_executor.step_output import RequestEnd, TokenOutput

if TYPE_CHECKING:
    from weir_executor.handoff.table import HeldHandoff
    from weir_executor.kv_transfer.plan import Source


class Listener(Protocol):
    """The call that a request came by, and that hears of it."""

    def hear_tokens(self, live: LiveRequest, output: TokenOutput) -> None: ...

    def hear_end(self, live: LiveRequest, end: RequestEnd) -> None: ...

    def hear_failure(self, live: LiveRequest, error: Exception) -> None: ...

    def flush(self) -> None:
        """All of a step has been heard."""


class LiveRequest:
    """One request of one call. `key` names it to the engine, `handle` to its listener."""

    __slots__ = (
        "aborted",
        "accepted",
        "adapter",
        "admitted_at",
        "early_aborts",
        "handle",
        "handoff",
        "key",
        "lease",
        "listener",
        "preparing",
        "prompt_tokens",
        "release_prefix",
        "request",
        "source",
        "stop_token_ids",
        "told",
        "waits_for_guide",
    )

    def __init__(
        self, request: GenerationRequest, handle: int, listener: Listener, adapter: HeldAdapter | None = None
    ) -> None:
        self.key, self.handle, self.listener = request.key, handle, listener
        self.request = request
        self.admitted_at = 0.0  # monotonic seconds
        self.prompt_tokens = len(request.token_ids)
        self.stop_token_ids = request.stop_token_ids
        self.accepted = False  # the caller knows that its first token was computed
        self.told = False
        self.aborted = False  # all of it, by its caller, who may have had its end on the way
        self.adapter = adapter  # held from `LiveRequests.add` to its `remove`
        self.lease: Lease | None = None
        self.preparing: asyncio.Task[None] | None = None
        self.early_aborts: set[int] = set()  # outputs that were aborted before the engine knew them
        self.waits_for_guide = False
        self.handoff: HeldHandoff | None = None  # what it leaves behind, from its end on
        self.release_prefix: Callable[[], None] | None = None  # gives back the memory of what the kvstore sent
        self.source: Source | None = None  # where that was


class LiveRequests:
    """By key. Each holds a lease of kind "slot". Used from one event loop."""

    def __init__(self, leases: LeaseLedger) -> None:
        self._leases = leases
        self._by_key: dict[int, LiveRequest] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._by_key.values()))

    def add(self, live: LiveRequest, owner: str) -> None:
        assert live.key not in self._by_key, live.key
        live.lease = self._leases.acquire("slot", owner)
        if live.adapter is not None:
            live.adapter.hold()
        live.admitted_at = self._leases.clock.monotonic()
        self._by_key[live.key] = live

    def age_seconds(self, live: LiveRequest) -> float:
        return self._leases.clock.monotonic() - live.admitted_at

    def get(self, key: int) -> LiveRequest | None:
        return self._by_key.get(key)

    def remove(self, key: int) -> LiveRequest | None:
        """Gives back whatever the request held. None for a key that is unknown: it never reached the engine."""
        live = self._by_key.pop(key, None)
        if live is None:
            return None
        assert live.lease is not None, key
        live.lease.release()
        if live.adapter is not None:
            live.adapter.release()
        drop_prefix(live)
        return live


def drop_prefix(live: LiveRequest) -> None:
    """The engine has taken the stored prefix, or will never take it."""
    if live.release_prefix is not None:
        live.release_prefix()
        live.release_prefix = None
