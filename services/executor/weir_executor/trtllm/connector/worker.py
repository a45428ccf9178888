"""The connector's half on every rank, called on the engine's loop: nothing here waits for the store or for a thread.

What was offered and cannot be copied in ends the engine: its tokens count as computed, and answers would be wrong. What
cannot be saved is not saved.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Protocol

from weir_chassis.clock import Clock
from weir_executor.step_output import FullBlock
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.copies import CopiedOut, Copies
from weir_executor.trtllm.connector.layout import layout_of
from weir_executor.trtllm.connector.plan import Load, Save, StepPlan

_log = logging.getLogger(__name__)
# Between two parts of one machine: what takes longer never ends, and its request would be parked for ever.
_LOAD_SECONDS: Final = 30.0
# A copy out that takes longer is given up: what it brings is not saved.
_SAVE_SECONDS: Final = 30.0


class LoadFailedError(RuntimeError):
    """The engine counts tokens as computed whose blocks do not hold them."""


class Store(Protocol):
    """Where full blocks go, without waiting."""

    def wants(self, block_hash: bytes) -> bool: ...

    def offer(self, blocks: Sequence[FullBlock]) -> None: ...


@dataclass(slots=True)
class _Saving:
    save: Save
    copied: CopiedOut
    begun_at: float
    wanted: Sequence[int]  # places in `save`, row by row


class RankWorker:
    """`run`: a function on a thread of ours. `connect`: to the store, once it is known what blocks are."""

    def __init__(
        self,
        view: AreaView,
        *,
        rank: int,
        ranks: int,
        kv_dtype: str,
        max_copying_bytes: int,
        connect: Callable[[Any], Store],
        run: Callable[..., Future[None]],
        clock: Clock,
        make_copies: Callable[[Any], Copies] = Copies,
    ) -> None:
        self._view, self._rank, self._ranks, self._kv_dtype = view, rank, ranks, kv_dtype
        self._max_copying_bytes, self._connect, self._run, self._clock = max_copying_bytes, connect, run, clock
        self._make_copies = make_copies
        self._copies: Copies | None = None
        self._store: Store | None = None
        self._saving_lock, self._saving = Lock(), list[_Saving]()
        self._bytes_lock, self._copying_bytes = Lock(), 0
        self._loading: dict[int, Future[None]] = {}
        self._asked_saved: set[int] = set()
        self._asked_loaded: dict[int, float] = {}
        self._withdrawn: set[int] = set()  # until they are asked for
        self.counts: Counter[str] = Counter()

    def register_kv_caches(self, pool: Any) -> None:
        """Raises ValueError for a pool whose blocks are not one after another, OSError where the folder is not here."""
        self._copies = self._make_copies(pool)
        layout = layout_of(tuple(pool.shape), str(pool.dtype), pool.element_size(), self._kv_dtype)
        assert layout.block_bytes == self._copies.block_bytes, (layout, self._copies.block_bytes)
        self._store = self._connect(layout)
        self._view.publish(self._rank, layout)

    def start_load_kv(self, plan: StepPlan, stream: Any) -> None:
        """Raises LoadFailedError."""
        self._withdrawn.update(plan.withdrawn)
        for load in plan.loads:
            try:
                self._load(load, stream)
            except Exception as error:
                raise LoadFailedError(f"request {load.request_id}: {type(error).__name__}: {error}") from error

    def wait_for_save(self, plan: StepPlan, stream: Any) -> None:
        """Waits for nothing: what the step has completed is on its way out, or dropped. Raises nothing."""
        for save in plan.saves:
            try:
                self._begin_save(save, stream)
            except Exception as error:
                self._fail("copy", error)

    def get_finished(self, finished: Sequence[int], loading: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of the requests that were ever named here, those whose copies are over, each once. Raises LoadFailedError."""
        now = self._clock.monotonic()
        self._asked_saved.update(finished)
        self._asked_loaded.update(dict.fromkeys(loading, now))
        loaded = self._end_loads(now)
        busy = self.end_saves()
        busy |= {request_id for request_id, future in self._loading.items() if not future.done()}
        saved = sorted(self._asked_saved - busy)
        self._asked_saved.difference_update(saved)
        for request_id in saved:
            if request_id not in self._asked_loaded:
                self._loading.pop(request_id, None)  # nobody will ask for it any more
        return saved, loaded

    def end_saves(self) -> set[int]:
        """What is in host memory goes on from there. Returns the requests whose blocks are still copied out.

        Any thread, and one of ours again and again: an engine with nothing to do calls no hook, perhaps for hours.
        """
        now, still = self._clock.monotonic(), list[_Saving]()
        with self._saving_lock:
            for saving in self._saving:
                if not self._has_ended(saving, now):
                    still.append(saving)
            self._saving = still
            return {saving.save.request_id for saving in still}

    @property
    def busy(self) -> bool:
        return bool(self._saving or self._loading or self._asked_saved or self._asked_loaded or self._withdrawn)

    # ── loads ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, load: Load, stream: Any) -> None:
        copies = self._ready()
        blocks = self._parts(load, copies.block_bytes)
        if load.is_async:
            after = copies.mark(stream)
            self._loading[load.request_id] = self._run(copies.copy_in_beside, blocks, load.block_ids, after)
        else:
            copies.copy_in(blocks, load.block_ids, stream)
        self.counts["loaded"] += len(blocks)

    def _parts(self, load: Load, size: int) -> list[memoryview]:
        """Of each block, this rank's part. Whoever holds one holds the file."""
        view = memoryview(self._view.open(load.lease))
        parts = []
        for place in range(load.skip_blocks, load.skip_blocks + len(load.block_ids)):
            begin = (place * self._ranks + self._rank) * size
            part = view[begin : begin + size]
            if len(part) != size:
                raise ValueError(f"the staged prefix ends before block {place}")
            parts.append(part)
        return parts

    def _end_loads(self, now: float) -> list[int]:
        loaded = []
        for request_id, asked_at in list(self._asked_loaded.items()):
            future = self._loading.get(request_id)
            if request_id in self._withdrawn:
                self._withdrawn.discard(request_id)
                del self._asked_loaded[request_id]
                loaded.append(request_id)
            elif future is not None and future.done():
                if (error := future.exception()) is not None:
                    raise LoadFailedError(f"request {request_id}: {type(error).__name__}: {error}") from error
                del self._loading[request_id], self._asked_loaded[request_id]
                loaded.append(request_id)
            elif now - asked_at > _LOAD_SECONDS:
                raise LoadFailedError(f"request {request_id}: its blocks have not come for {_LOAD_SECONDS:g} s")
        return loaded

    # ── saves ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_save(self, save: Save, stream: Any) -> None:
        copies, store = self._ready(), self._store
        assert store is not None
        wanted = [place for place, block_hash in enumerate(save.hashes) if store.wants(block_hash)]
        room = (self._max_copying_bytes - self._copying_bytes) // copies.block_bytes
        self.counts["dropped"] += max(0, len(wanted) - room)
        wanted = wanted[:room]
        if not wanted:
            return
        copied = copies.copy_out([save.block_ids[place] for place in wanted], stream)
        with self._bytes_lock:
            self._copying_bytes += len(wanted) * copies.block_bytes
        with self._saving_lock:
            self._saving.append(_Saving(save, copied, self._clock.monotonic(), wanted))

    def _has_ended(self, saving: _Saving, now: float) -> bool:
        try:
            if saving.copied.ready:
                self._hand_on(saving)
                return True
        except Exception as error:  # the device's, which whoever computes on it will hear of
            self._let_go(saving, "failed")
            self._fail("copy", error)
            return True
        if now - saving.begun_at > _SAVE_SECONDS:
            self._let_go(saving, "given up")
            return True
        return False

    def _hand_on(self, saving: _Saving) -> None:
        """Raises where there are no threads any more: the process ends."""
        self._run(self._offer, saving)

    def _offer(self, saving: _Saving) -> None:
        """On a thread of ours: this copies once more."""
        try:
            assert self._store is not None
            self._store.offer([_full_block(saving, row) for row in range(len(saving.wanted))])
        except Exception as error:
            self._fail("offer", error)
        finally:
            self._let_go(saving, "saved")

    def _let_go(self, saving: _Saving, outcome: str) -> None:
        with self._bytes_lock:
            self._copying_bytes -= len(saving.wanted) * self._ready().block_bytes
        self.counts[outcome] += len(saving.wanted)

    def _fail(self, what: str, error: Exception) -> None:
        self.counts["failed"] += 1
        _log.warning("blocks are not saved: %s: %s: %s", what, type(error).__name__, error)

    def _ready(self) -> Copies:
        assert self._copies is not None, "the engine has not registered its pool"
        return self._copies


def _full_block(saving: _Saving, row: int) -> FullBlock:
    save, place = saving.save, saving.wanted[row]
    parent = save.hashes[place - 1] if place else save.parent_hash
    return FullBlock(save.root, save.hashes[place], parent, saving.copied.payload(row))
