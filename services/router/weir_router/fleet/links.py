"""One link for each member of the fleet: opened when it joins, closed when it has left and nothing lives on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from weir_chassis.background import Background
from weir_chassis.errors import WorkerLost
from weir_chassis.telemetry import get_logger
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.membership import Member, Place, WorkerKind
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.tokenizer_link import TokenizerLink
from weir_router.fleet.views import WorkerState

_MAKERS: Final[Mapping[WorkerKind, Callable[[str, LinkContext], Link]]] = {
    "executor": ExecutorLink,
    "tokenizer": TokenizerLink,
    "postprocess": PostprocessLink,
}
# Of calls that a link does not count, such as an embedding: what they may take when their worker has left.
_CLOSE_SECONDS: Final = 30.0

L = TypeVar("L", bound=Link)


class Links:
    """By kind and address. A worker that has left is draining here, whatever it says of itself."""

    def __init__(self, context: LinkContext, background: Background) -> None:
        self.executors: dict[str, ExecutorLink] = {}
        self.tokenizers: dict[str, TokenizerLink] = {}
        self.postprocessors: dict[str, PostprocessLink] = {}
        self._by_kind: Mapping[WorkerKind, dict[str, Any]] = {
            "executor": self.executors,
            "tokenizer": self.tokenizers,
            "postprocess": self.postprocessors,
        }
        self._context, self._background = context, background
        self._running: dict[Link, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Link]:
        yield from self.executors.values()
        yield from self.tokenizers.values()
        yield from self.postprocessors.values()

    def answering(self) -> set[Place]:
        """Who answers on its own connection."""
        return {link.place for link in self if link.state is not WorkerState.DOWN}

    def models(self) -> set[str]:
        """Names of what the executors serve or have served."""
        return {link.model.version.model for link in self.executors.values() if link.model is not None}

    def match(self, members: Mapping[Place, Member]) -> bool:
        """Opens, leaves and closes until there is a link for each member and for no one else. Whether any did."""
        known = {link.place: link for link in self}
        changed = False
        for place in members:
            if place not in known:
                self._open(place)
                changed = True
        for place, link in known.items():
            changed |= self._follow(link, members.get(place))
        return self._find_twins() or changed

    async def close(self) -> None:
        """All of them, at the end. Their tasks are their background's."""
        for link in list(self):
            await link.close()

    def _follow(self, link: Link, member: Member | None) -> bool:
        if member is not None:
            returned, link.leaving = link.leaving, False
            return link.hear(member.instance) or returned
        left, link.leaving = not link.leaving, True
        if link.is_idle():
            self._close(link)
            return True
        return left

    def _find_twins(self) -> bool:
        """A process may be found at several addresses, as IPv4 and IPv6: it is given requests at the first of them."""
        changed = False
        for links in self._by_kind.values():
            seen: set[str] = set()
            for link in links.values():
                answers = link.state is not WorkerState.DOWN and not link.leaving
                instance_id = link.instance.instance_id if answers else ""
                was, link.is_twin = link.is_twin, instance_id in seen
                changed |= was is not link.is_twin
                seen |= {instance_id} - {""}
        return changed

    def _open(self, place: Place) -> None:
        link = self._by_kind[place.kind][place.address] = _MAKERS[place.kind](place.address, self._context)
        get_logger().info("worker_joined", kind=place.kind, address=place.address)
        self._running[link] = self._background.start(link.run(), name=f"{place.kind}-link")

    def _close(self, link: Link) -> None:
        get_logger().info("worker_left", kind=link.kind, address=link.address)
        del self._by_kind[link.kind][link.address]
        self._background.start(_end(link, self._running.pop(link)), name=f"close-{link.kind}-link")


def found(links: Mapping[str, L], address: str) -> L:
    """Raises WorkerLost for one that has left since it was chosen."""
    link = links.get(address)
    if link is None:
        raise WorkerLost(f"{address} has left the fleet", metadata={"worker": address})
    return link


async def _end(link: Link, running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await link.close(_CLOSE_SECONDS)
