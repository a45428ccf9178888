"""An executor in a few numbers: prompts one after another, sequences side by side, and blocks that stay for later."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sim.clock import VirtualTime
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events import blocks

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Spec:
    """Seconds and blocks. `token_seconds`: of a prompt's; `step_seconds`: of each running sequence's next token."""

    token_seconds: float = 1e-4
    step_seconds: float = 0.02
    slots: int = 64
    cache_blocks: int = 4000


@dataclass(eq=False, slots=True)
class Job:
    """One request at one executor."""

    block_hashes: Sequence[bytes]
    prompt_tokens: int
    output_tokens: int
    on_first_token: Callable[[], None]
    on_end: Callable[[], None]
    # Its executor has died.
    on_lost: Callable[[], None]
    cached_tokens: int = 0


@dataclass(eq=False)
class SimExecutor:
    """`tell` is given its KV events as they happen. One that was stopped makes no progress and calls nobody."""

    name: str
    time: VirtualTime
    tell: Callable[[str, Sequence[KvEvent]], None]
    spec: Spec = field(default_factory=Spec)

    def __post_init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.prefilling: Job | None = None
        self.running: list[Job] = []
        self.alive = True
        self.peak_waiting = self.prefill_tokens = 0
        self._cache: OrderedDict[bytes, None] = OrderedDict()

    @property
    def outstanding_prefill_tokens(self) -> int:
        jobs = [*self.waiting, *([self.prefilling] if self.prefilling else [])]
        return sum(job.prompt_tokens for job in jobs)

    @property
    def outstanding_tokens(self) -> int:
        jobs = [*self.waiting, *self.running, *([self.prefilling] if self.prefilling else [])]
        return self.outstanding_prefill_tokens + sum(job.output_tokens for job in jobs)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self.peak_waiting = max(self.peak_waiting, len(self.waiting))
        self._begin_next()

    def stop(self) -> list[Job]:
        """It dies; what it had to do is somebody else's."""
        self.alive = False
        lost = [*self.waiting, *self.running, *([self.prefilling] if self.prefilling else [])]
        self.waiting.clear()
        self.running.clear()
        self.prefilling = None
        return lost

    def _begin_next(self) -> None:
        if self.prefilling is not None or not self.waiting or len(self.running) >= self.spec.slots:
            return
        job = self.prefilling = self.waiting.popleft()
        held = next((i for i, each in enumerate(job.block_hashes) if each not in self._cache), len(job.block_hashes))
        job.cached_tokens = min(held * BLOCK_TOKENS, job.prompt_tokens - 1)
        computed = job.prompt_tokens - job.cached_tokens
        self.prefill_tokens += computed
        # Sequences that run have their part of each step.
        slowed = 1.0 + len(self.running) / self.spec.slots
        self.time.after(computed * self.spec.token_seconds * slowed, lambda: self._prefilled(job))

    def _prefilled(self, job: Job) -> None:
        if self.prefilling is not job:
            return
        self.prefilling = None
        self._keep(job.block_hashes)
        self.running.append(job)
        job.on_first_token()
        self.time.after(job.output_tokens * self.spec.step_seconds, lambda: self._ended(job))
        self._begin_next()

    def _ended(self, job: Job) -> None:
        if job in self.running:
            self.running.remove(job)
            job.on_end()
            self._begin_next()

    def _keep(self, block_hashes: Sequence[bytes]) -> None:
        """A chain's beginning is the last of it to go."""
        known = sum(each in self._cache for each in block_hashes)
        for block_hash in reversed(block_hashes):
            self._cache[block_hash] = None
            self._cache.move_to_end(block_hash)
        evicted = [self._cache.popitem(last=False)[0] for _ in range(len(self._cache) - self.spec.cache_blocks)]
        parent = block_hashes[known - 1] if known else b""
        events = [*blocks.stored(block_hashes[known:], parent, tier="device"), *blocks.removed(evicted, tier="device")]
        if events:
            self.tell(self.name, events)
