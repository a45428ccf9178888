"""The connector's half on rank 0, called on the engine's loop: what is offered, loaded and saved.

It asks no other machine. A look into the folder of staged prefixes is all that a request costs here, and whatever is
wrong with that the prompt is computed. Only `request_finished` must be right: it keeps blocks that are still copied.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

from weir_executor.foreign.salts import scope_of
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.plan import Load, Save, StepPlan
from weir_executor.trtllm.connector.requests import Chain, Offer, Tracked

_log = logging.getLogger(__name__)
# What was offered and never scheduled is forgotten, the oldest first; so many wait in no engine.
_MAX_OFFERS: Final = 4096
# What is scheduled and not over. More are not followed: neither loaded nor saved.
_MAX_REQUESTS: Final = 65_536


class Leader:
    """`counts`: offers by what came of them."""

    def __init__(self, view: AreaView, *, block_size: int, sync_blocks: int) -> None:
        """`sync_blocks`: no more than these are copied while the whole batch waits."""
        self._view, self._block_size, self._sync_blocks = view, block_size, sync_blocks
        self._offers: OrderedDict[int, Offer] = OrderedDict()
        self._allocated: dict[int, Sequence[int]] = {}  # block ids of what is offered
        self._requests: dict[int, Tracked] = {}
        self._roots: OrderedDict[int, bytes | None] = OrderedDict()  # scopes of what is not scheduled yet
        self._withdrawn: list[int] = []  # as `StepPlan`'s next
        self._spent: list[str] = []  # leases of loads that every rank has begun by the next iteration
        self._numbers = count()
        self.counts: Counter[str] = Counter()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens beyond the computed ones that are here, and whether they are loaded beside the batch. Never raises."""
        request_id = request.request_id
        try:
            self._withdraw(request_id)
            self._note_root(request)
            offer = self._find(request, num_computed_tokens)
        except Exception as error:  # on any doubt it is computed
            self.counts["failed"] += 1
            _log.warning("a staged prefix cannot be offered: %s: %s", type(error).__name__, error)
            return 0, False
        if offer is None:
            self.counts["miss"] += 1
            return 0, False
        self.counts["hit"] += 1
        self._offers[request_id] = offer
        if len(self._offers) > _MAX_OFFERS:
            self._withdraw(next(iter(self._offers)))
        return (offer.end_block - offer.first_block) * self._block_size, offer.is_async

    def update_state_after_alloc(self, request: Any, block_ids: Sequence[int]) -> None:
        """The only place where the blocks of what is loaded beside the batch are told."""
        if request.request_id in self._offers:
            self._allocated[request.request_id] = list(block_ids)

    def build_connector_meta(self, scheduler_output: Any) -> StepPlan:
        self._release_spent()
        saves: list[Save] = []
        for data in scheduler_output.new_requests:
            saves += self._begin(data)
        for data in scheduler_output.cached_requests:
            saves += self._go_on(data)
        withdrawn, self._withdrawn = self._withdrawn, []
        return StepPlan(list(self._take_loads()), saves, withdrawn)

    def request_finished(self, request: Any, cache_block_ids: Sequence[int]) -> bool:  # noqa: ARG002
        """Whether its blocks are to stay until every rank says that it copies them no more."""
        offer = self._offers.get(request.request_id)
        if offer is not None and offer.is_async:
            self._withdrawn.append(request.request_id)  # the engine waits for it all the same
        self._withdraw(request.request_id)
        self._roots.pop(request.request_id, None)
        tracked = self._requests.pop(request.request_id, None)
        return tracked is not None and (tracked.has_saves or tracked.is_loading)

    def request_reset(self, request: Any) -> None:
        """Of newer versions: its blocks are taken from it, and it will begin anew."""
        self._withdraw(request.request_id)
        if (tracked := self._requests.get(request.request_id)) is not None:
            self._track(request.request_id, tracked.chain and Chain(tracked.chain.root, self._block_size))

    def cancel_load(self, request: Any, start: int, end: int) -> None:  # noqa: ARG002
        """Of newer versions: what was offered is not wanted."""
        self._withdraw(request.request_id)

    @property
    def leases(self) -> int:
        return len(self._offers) + len(self._spent)

    @property
    def requests(self) -> int:
        return len(self._requests)

    # ── offers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _find(self, request: Any, computed_tokens: int) -> Offer | None:
        if computed_tokens % self._block_size or not (staged := self._view.staged()):
            return None
        root = self._roots[request.request_id]
        if root is None:
            return None
        chain = Chain(root, self._block_size)
        chain.tokens.extend(request.get_tokens(0))
        # The last token is always computed, because its logits give the next one.
        most = (len(chain.tokens) - 1) // self._block_size
        longest = max(each.end_block for each in staged)
        computed = computed_tokens // self._block_size
        lease = f"{request.request_id}-{next(self._numbers)}"
        name = self._view.lease(lease, staged, chain.hashes(longest), computed=computed, most=most)
        if name is None:
            return None
        end = min(name.end_block, most)
        return Offer(lease, name.first_block, computed, end, computed_tokens, end - computed > self._sync_blocks)

    def _note_root(self, request: Any) -> None:
        """Older versions tell it here and never again."""
        self._roots[request.request_id] = self._root_of(request)
        if len(self._roots) > _MAX_REQUESTS:
            self._roots.popitem(last=False)

    def _root_of(self, request: Any) -> bytes | None:
        """Of the scope that its salt names. None: it shares nothing."""
        salt = getattr(request, "cache_salt", None)
        if salt is not None:
            return scope_of(salt)
        number = getattr(request, "cache_salt_id", None)
        return None if number is None else self._view.root_of(number)

    def _withdraw(self, request_id: int) -> None:
        offer = self._offers.pop(request_id, None)
        self._allocated.pop(request_id, None)
        if offer is not None:
            self._view.release(offer.lease)

    def _release_spent(self) -> None:
        """Between two iterations all ranks agree on what is finished, so each has opened what it was told to load."""
        for lease in self._spent:
            self._view.release(lease)
        self._spent.clear()

    # ── one iteration ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_loads(self) -> Iterator[Load]:
        for request_id, block_ids in self._allocated.items():
            offer = self._offers.pop(request_id)
            self._spent.append(offer.lease)
            if offer.is_async and (tracked := self._track(request_id, None)) is not None:
                tracked.is_loading = True
            ids = block_ids[offer.first_block : offer.end_block]
            yield Load(request_id, offer.lease, offer.first_block - offer.file_first_block, ids, offer.is_async)
        self._allocated.clear()

    def _begin(self, data: Any) -> Iterator[Save]:
        """It is scheduled for the first time. What it was offered is not in the position that the engine tells."""
        block_ids = _new_block_ids(data)
        offer, position = self._offers.get(data.request_id), data.computed_position
        if offer is not None:
            self._allocated.setdefault(data.request_id, block_ids)
        tracked = self._track(data.request_id, self._chain_of(data))
        if tracked is None:
            return iter(())
        tracked.extend(data.new_tokens, block_ids)
        if offer is not None:
            position = offer.computed_tokens + (offer.end_block - offer.first_block) * self._block_size
        tracked.saved = position // self._block_size
        return tracked.saves(data.request_id, position + data.num_scheduled_tokens, self._block_size)

    def _go_on(self, data: Any) -> Iterator[Save]:
        tracked = self._requests.get(data.request_id)
        if tracked is None:
            return iter(())
        tracked.extend(data.new_tokens, _new_block_ids(data))
        valid = data.computed_position + data.num_scheduled_tokens
        return tracked.saves(data.request_id, valid, self._block_size)

    def _chain_of(self, data: Any) -> Chain | None:
        noted = self._roots.pop(data.request_id, None)
        root = self._root_of(data) or noted
        return None if root is None else Chain(root, self._block_size)

    def _track(self, request_id: int, chain: Chain | None) -> Tracked | None:
        before = self._requests.pop(request_id, None)
        if len(self._requests) >= _MAX_REQUESTS:
            self.counts["not followed"] += 1
            return None
        has_saves = before is not None and before.has_saves
        tracked = self._requests[request_id] = Tracked(chain, has_saves=has_saves)
        return tracked


def _new_block_ids(data: Any) -> Sequence[int]:
    """Flat, or of the one group of layers that there is: a list by group, or a table."""
    groups = getattr(data, "new_block_ids_by_layer_group", None)
    if data.new_block_ids or not groups:
        return data.new_block_ids  # type: ignore[no-any-return]
    groups = list(groups.values()) if isinstance(groups, Mapping) else groups
    assert len(groups) == 1, "several groups of layers are refused at the start"
    return groups[0]  # type: ignore[no-any-return]
