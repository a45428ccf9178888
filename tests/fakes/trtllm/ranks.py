"""One engine's side of a connector without a GPU: a leader, ranks with pools of their own, the hooks in their order.

asked, allocated, told → output built → plan, to every rank → loads → layers → saves → ends → who is finished

What a token's keys and values are follows from its salt, all tokens before it, and the rank: so whatever a request
finds in its blocks is right or wrong. Blocks hold garbage when they are given to somebody.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch

from fakes.trtllm.connector import LlmRequest, NewerRequestData, RequestData, SchedulerOutput

LAYERS, FEATURES = 2, 4
_GARBAGE = 0xEE


@dataclass(eq=False)
class Live:
    """`position`: tokens whose keys and values are in its blocks."""

    request: LlmRequest
    tokens: list[int]
    salt: str
    prompt_tokens: int
    max_tokens: int
    block_ids: list[int]
    position: int
    offered: int
    told_tokens: int = 0
    told_blocks: int = 0
    scheduled: int = 0
    cancelled: bool = False
    over: bool = False
    since: int = 0  # the iteration from which it is loading or saving
    states: list[int] = field(default_factory=list)  # of each token, what its keys and values are

    @property
    def request_id(self) -> int:
        return self.request.request_id

    def blocks(self, block_size: int) -> int:
        """That it may come to."""
        return _blocks(self.prompt_tokens + self.max_tokens, block_size)

    def state_at(self, count: int) -> list[int]:
        while len(self.states) < count:
            before = self.states[-1] if self.states else crc32(self.salt.encode())
            self.states.append(crc32(self.tokens[len(self.states)].to_bytes(4, "little"), before))
        return self.states[:count]


class Blocks:
    """Ids, who uses them, and which are found again; the oldest unused goes."""

    def __init__(self, count: int, block_size: int) -> None:
        self.block_size = block_size
        self.free = list(range(count))
        self.used: Counter[int] = Counter()
        self.cached: OrderedDict[tuple[str, tuple[int, ...]], int] = OrderedDict()
        self._keys: dict[int, tuple[str, tuple[int, ...]]] = {}

    def match(self, salt: str, tokens: Sequence[int]) -> list[int]:
        found = []
        for end in range(self.block_size, len(tokens), self.block_size):
            block_id = self.cached.get((salt, tuple(tokens[:end])))
            if block_id is None:
                break
            found.append(block_id)
        return found

    def available(self, besides: Iterable[int] = ()) -> int:
        kept = set(besides)
        return len(self.free) + sum(1 for each in self.cached.values() if not self.used[each] and each not in kept)

    def take(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            if not self.free:
                key = next(key for key, block_id in self.cached.items() if not self.used[block_id])
                self.free.append(self.cached.pop(key))
                del self._keys[self.free[-1]]
            taken.append(self.free.pop())
        self.use(taken)
        return taken

    def use(self, block_ids: Iterable[int]) -> None:
        self.used.update(block_ids)

    def keep(self, salt: str, tokens: Sequence[int], block_ids: Sequence[int]) -> None:
        """What is computed is found from now on."""
        for place in range(len(tokens) // self.block_size):
            key = (salt, tuple(tokens[: (place + 1) * self.block_size]))
            if key not in self.cached and block_ids[place] not in self._keys:
                self.cached[key] = block_ids[place]
                self._keys[block_ids[place]] = key

    def release(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self.used[block_id] -= 1
            if not self.used[block_id] and block_id not in self._keys:
                self.free.append(block_id)


@dataclass
class _Async:
    """One rank's view of what is copied beside the batch, as the engine keeps it."""

    new_saving: set[int] = field(default_factory=set)
    new_loading: set[int] = field(default_factory=set)
    saving: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    saved: set[int] = field(default_factory=set)
    loaded: set[int] = field(default_factory=set)


class Ranks:
    """`counts`: `operations` are calls of hooks, `wrong hits` blocks that do not hold what they should."""

    def __init__(
        self,
        scheduler: Any,
        workers: Sequence[Any],
        *,
        num_blocks: int,
        block_size: int,
        newer: bool = False,
        chunk_tokens: int = 1 << 20,
        max_running: int = 1 << 20,
        draw: Callable[[Live], int] | None = None,
    ) -> None:
        self._scheduler, self.workers, self._newer = scheduler, workers, newer
        self._chunk_tokens, self._max_running, self._draw = chunk_tokens, max_running, draw or _draw
        self.blocks = Blocks(num_blocks, block_size)
        shape = (num_blocks, LAYERS, 2, block_size * FEATURES)
        self.pools = [torch.full(shape, _GARBAGE, dtype=torch.uint8) for _ in workers]
        self._arrays = [pool.numpy().reshape(num_blocks, LAYERS, 2, block_size, FEATURES) for pool in self.pools]
        for worker, pool in zip(workers, self.pools, strict=True):
            worker.register_kv_caches(pool)
        self._ends = [worker.register_forward_pass_callable() for worker in workers]
        self._async = [_Async() for _ in workers]
        self.running: dict[int, Live] = {}
        self.parked: dict[int, Live] = {}
        self.saving: dict[int, Live] = {}
        self._external: dict[int, int] = {}
        self._begun: set[int] = set()
        self.iteration = 0
        self.counts: Counter[str] = Counter()

    # ── in and out ────────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, request_id: int, tokens: Sequence[int], salt: str, max_tokens: int) -> Live | None:
        """None: there is no room, or it is not its turn. The connector is asked, and may be asked again."""
        if len(self.running) + len(self.parked) >= self._max_running:
            return None
        size, found = self.blocks.block_size, self.blocks.match(salt, tokens)
        reserved = sum(live.blocks(size) - len(live.block_ids) for live in self._all())
        wanted = _blocks(len(tokens) + max_tokens, size) - len(found)
        if wanted + reserved > self.blocks.available(besides=found):
            return None
        request = LlmRequest(request_id, list(tokens), salt, tells_salt=self._newer)
        self._did()
        offered, is_async = self._scheduler.get_num_new_matched_tokens(request, len(found) * size)
        assert offered % size == 0
        assert len(found) * size + offered < len(tokens), "the last token must be computed"
        assert offered or not is_async
        self.blocks.use(found)
        block_ids = found + self.blocks.take(_blocks(len(tokens), size) - len(found))
        for array in self._arrays:
            array[block_ids[len(found) :]] = _GARBAGE
        position = len(found) * size + offered
        live = Live(request, request.get_tokens(0), salt, len(tokens), max_tokens, block_ids, position, offered)
        self._did()
        self._scheduler.update_state_after_alloc(request, list(block_ids))
        self.counts["offered tokens"] += offered
        if is_async:
            live.since = self.iteration
            self.parked[request_id] = live
            for each in self._async:
                each.new_loading.add(request_id)
        else:
            self.running[request_id] = live
            self._external[request_id] = offered
        return live

    def cancel(self, request_id: int, *, at_once: bool = False) -> None:
        """Heard of at the end of the iteration. `at_once`: a parked one too, whose blocks are still written to."""
        live = self.running.get(request_id) or self.parked.get(request_id)
        if live is not None:
            live.cancelled = True
            if at_once and self.parked.pop(request_id, None) is not None:
                self._finish(live)

    # ── one iteration ─────────────────────────────────────────────────────────────────────────────────────────────────

    def iterate(self) -> list[Live]:
        """Those that ended in it. Raises what a hook raises: the engine is dead then."""
        self.iteration += 1
        scheduled = self._schedule()
        output = self._output(scheduled)
        self._did()
        plan = pickle.dumps(self._scheduler.build_connector_meta(output))
        for rank, worker in enumerate(self.workers):
            self._step(rank, worker, pickle.loads(plan), scheduled)
        ended = self._sample(scheduled)
        self._agree()
        return ended

    def verify(self, live: Live, count: int) -> None:
        """Its first so many tokens, on all ranks."""
        states = np.array(live.state_at(count), dtype="<u4").view(np.uint8).reshape(-1, FEATURES)
        size = self.blocks.block_size
        for rank, array in enumerate(self._arrays):
            for place in range(_blocks(count, size)):
                expected = states[place * size : (place + 1) * size] ^ rank
                there = array[live.block_ids[place]][:, :, : len(expected)]
                self.counts["wrong hits"] += not bool((there == expected).all())

    def _all(self) -> list[Live]:
        return [*self.running.values(), *self.parked.values()]

    def _did(self, operations: int = 1) -> None:
        self.counts["operations"] += operations

    def _schedule(self) -> list[Live]:
        left, scheduled = self._chunk_tokens, []
        for live in self.running.values():
            pending = len(live.tokens) - live.position
            live.scheduled = min(pending, left)
            if live.scheduled:
                left -= live.scheduled
                scheduled.append(live)
                self._grow(live)
        return scheduled

    def _grow(self, live: Live) -> None:
        missing = _blocks(live.position + live.scheduled, self.blocks.block_size) - len(live.block_ids)
        if missing > 0:
            new = self.blocks.take(missing)
            for array in self._arrays:
                array[new] = _GARBAGE
            live.block_ids += new

    def _output(self, scheduled: Sequence[Live]) -> SchedulerOutput:
        output = SchedulerOutput()
        for live in scheduled:
            is_new = live.request_id not in self._begun
            self._begun.add(live.request_id)
            position = live.position - self._external.get(live.request_id, 0)
            new = (live.tokens[live.told_tokens :], live.block_ids[live.told_blocks :])
            live.told_tokens, live.told_blocks = len(live.tokens), len(live.block_ids)
            kind = NewerRequestData if self._newer else RequestData
            data = kind(live.request_id, *new, position, live.scheduled)
            if isinstance(data, NewerRequestData):
                data.cache_salt = live.salt
            (output.new_requests if is_new else output.cached_requests).append(data)
        self._external.clear()
        return output

    def _step(self, rank: int, worker: Any, plan: object, scheduled: Sequence[Live]) -> None:
        worker.bind_connector_meta(plan)
        worker.start_load_kv(None)
        for layer in range(LAYERS):
            worker.wait_for_layer_load(layer, None)
            worker.save_kv_layer(layer, None)
        self._forward(rank, scheduled)
        if self._ends[rank] is not None:
            self._ends[rank]()
        worker.wait_for_save(None)
        worker._clear_connector_meta()
        self._did(4 + 2 * LAYERS)

    def _forward(self, rank: int, scheduled: Sequence[Live]) -> None:
        """What was found is read, and what is computed is written."""
        size, array = self.blocks.block_size, self._arrays[rank]
        for live in scheduled:
            states = np.array(live.state_at(live.position + live.scheduled), dtype="<u4")
            wanted = states.view(np.uint8).reshape(-1, FEATURES) ^ rank
            for position in range(live.position, live.position + live.scheduled):
                array[live.block_ids[position // size], :, :, position % size] = wanted[position]

    def _sample(self, scheduled: Sequence[Live]) -> list[Live]:
        ended = []
        for live in scheduled:
            if live.position < live.prompt_tokens:
                self.verify(live, live.position)  # before it was the engine's own, or came from the store
            live.position += live.scheduled
            if live.position >= live.prompt_tokens:
                self.blocks.keep(live.salt, live.tokens[: live.prompt_tokens], live.block_ids)
            if live.position == len(live.tokens):
                if len(live.tokens) - live.prompt_tokens + 1 >= live.max_tokens:
                    live.over = True
                live.tokens.append(self._draw(live))
        for live in list(self.running.values()):
            if live.over or live.cancelled:
                del self.running[live.request_id]
                self._finish(live)
                ended.append(live)
        return ended

    def _finish(self, live: Live) -> None:
        self._did()
        if not live.cancelled:
            self.verify(live, live.position)
            self.blocks.keep(live.salt, live.tokens[: live.position], live.block_ids)
        self._begun.discard(live.request_id)
        if self._scheduler.request_finished(live.request, list(live.block_ids)):
            live.since = self.iteration
            self.saving[live.request_id] = live
            for each in self._async:
                each.new_saving.add(live.request_id)
        else:
            self.blocks.release(live.block_ids)

    def _agree(self) -> None:
        """Who is finished on all ranks."""
        for worker, mine in zip(self.workers, self._async, strict=True):
            finished, started = sorted(mine.new_saving), sorted(mine.new_loading)
            mine.saving |= mine.new_saving
            mine.loading |= mine.new_loading
            mine.new_saving, mine.new_loading = set(), set()
            self._did()
            saved, loaded = worker.get_finished(finished, started)
            assert set(saved) <= mine.saving, "told of what was not asked for, or twice"
            assert set(loaded) <= mine.loading, "told of what was not asked for, or twice"
            mine.saving -= set(saved)
            mine.loading -= set(loaded)
            mine.saved |= set(saved)
            mine.loaded |= set(loaded)
        for request_id in set.intersection(*(each.saved for each in self._async)):
            self.blocks.release(self.saving.pop(request_id).block_ids)
            for each in self._async:
                each.saved.discard(request_id)
        for request_id in set.intersection(*(each.loaded for each in self._async)):
            for each in self._async:
                each.loaded.discard(request_id)
            live = self.parked.pop(request_id, None)
            if live is not None:
                self.running[request_id] = live


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def _draw(live: Live) -> int:
    return 3 + live.state_at(len(live.tokens))[-1] % 97
