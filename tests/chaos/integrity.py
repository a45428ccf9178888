"""Random submits, cancels, preemptions and failures over a pool that is always too small; the books after every step.

    PYTHONPATH=tests python -m chaos.integrity --operations 200000 --seed 7

The steps are those of the real loop, scheduler and pool, made one after the other on this thread, so that a seed
repeats a run exactly. Only what computes is arithmetic.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos import seeds
from contract.engine_contract import Listener, hashes, prompt, request
from weir_chassis.errors import Internal, WeirError
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.paged.batch import Batch
from weir_executor.paged.sequence import Status
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.paged.worker import Result
from weir_executor.request import SpeculationMode

_BLOCK = 4
# What an operation is, and how often among a hundred.
_SHARES = {
    "submit": 43,
    "cancel": 20,
    "cancel output": 8,
    "preempt": 18,
    "fail request": 3,
    "fail step": 2,
    "take over": 6,  # what was handed off, or what was and has gone
}


@dataclass
class Run:
    """One run. `counts` are of what was done and what came of it."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    heard: Listener = field(default_factory=Listener)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.engine = FakeEngine(
            FakeEngineConfig(
                block_size=_BLOCK,
                num_blocks=self.dice.randint(12, 40),
                max_num_seqs=self.dice.randint(2, 8),
                max_batched_tokens=self.dice.randint(8, 48),
                max_waiting=12,
                max_model_len=48,
                tenants=Tenants(
                    {
                        "acme": TenantLimits(weight=4, max_blocks=12),
                        "zoo": TenantLimits(max_num_seqs=2),
                        "*": TenantLimits(max_num_seqs=3, max_blocks=20),
                    }
                ),
                speculation=SpeculationOptions(SpeculationMode.NGRAM, self.dice.randint(1, 8), adaptive=False),
                eos_after=self.dice.choice((None, 5)),
                emit_full_blocks=True,
                check_integrity=True,
            )
        )
        self.engine._loop._deliver = self.heard
        self.submitted: list[int] = []
        self.cancelled: set[tuple[int, int | None]] = set()
        self._compute, self.engine._fake.run = self.engine._fake.run, self._run  # type: ignore[method-assign]

    def go(self, operations: int) -> Counter[str]:
        """Raises AssertionError at the first step that breaks an invariant."""
        kinds, shares = list(_SHARES), list(_SHARES.values())
        for number in range(operations):
            kind = self.dice.choices(kinds, shares)[0]
            self.counts[kind] += self._do(kind, number)
            self._step()
        for key in self.submitted:
            self.engine.release_held(key)
        while self.engine._scheduler.live or self.engine._door._inbox:
            self._step()
        for key in self.submitted:  # those that have ended only now
            self.engine.release_held(key)
        self._step()
        self._close_books(operations)
        return self.counts

    def _do(self, kind: str, number: int) -> bool:
        """Whether there was something to do it to."""
        live = list(self.engine._door._live)
        if kind == "submit":
            return self._submit(number)
        if kind == "fail step":
            self.engine.fail_step()
            return True
        if kind == "preempt":
            return self._preempt()
        if kind == "take over":
            return self._take_over()
        if not live:
            return False
        key = self.dice.choice(live)
        if kind == "fail request":
            self.engine.fail_request(key, Internal("told to"))
        else:
            self._cancel(key, self.dice.randint(0, 2) if kind == "cancel output" else None)
        return True

    def _take_over(self) -> bool:
        left = [key for key, end in self.heard.ends.items() if end.held_blocks]
        if not left:
            return False
        key = self.dice.choice(left[-8:])
        blocks, wanted = self.engine.read_held(key, 0, 1), self.engine._scheduler.held.of(key)
        assert (blocks is None) == (not wanted), "what is held can be read, and nothing else"
        self.engine.release_held(key)
        return blocks is not None

    def _cancel(self, key: int, output_index: int | None) -> None:
        self.engine.abort(key, output_index)
        self.cancelled.add((key, output_index))

    def _run(self, batch: Batch) -> Sequence[Result]:
        """What reaches the worker, and whether a cancelled output is still among it."""
        for sequence in (scheduled.sequence for scheduled in batch.scheduled):
            names = {(sequence.live.key, None), (sequence.live.key, sequence.output_index)}
            self.counts["computed after cancel"] += bool(names & self.cancelled)
        self.counts["drafts"] += sum(len(scheduled.draft_token_ids) for scheduled in batch.scheduled)
        return self._compute(batch)

    def _submit(self, key: int) -> bool:
        dice = self.dice
        tokens = prompt(dice.randint(1, 30), start=dice.randint(0, 3))
        shared = dice.random() < 0.7
        resumed = {0: tokens[: dice.randint(0, 3)]} if dice.random() < 0.2 else {}
        try:
            self.engine.submit(
                request(
                    key,
                    tokens,
                    dice.randint(3, 16),
                    n=dice.randint(1, 3),
                    block_hashes=hashes(tokens, _BLOCK) if shared else (),
                    cache_scope=b"chaos" if shared else b"",
                    priority=dice.randint(0, 2),
                    tenant=dice.choice(("", "acme", "zoo", "guest")),
                    resumed=resumed,
                    ignore_eos=dice.random() < 0.5,
                    hand_off=shared and dice.random() < 0.3,
                )
            )
        except WeirError:
            self.counts["refused"] += 1
            return False
        self.submitted.append(key)
        return True

    def _preempt(self) -> bool:
        running = [s for live in self.engine._scheduler.live.values() for s in live.sequences]
        running = [s for s in running if s.status is Status.RUNNING]
        if running:
            self.engine._scheduler._preempt(self.dice.choice(running))
        return bool(running)

    def _step(self) -> None:
        self.engine._loop._step()
        self.counts["steps"] += 1
        assert not self.heard.wrongs, self.heard.wrongs[:3]

    def _close_books(self, operations: int) -> None:
        pool = self.engine._scheduler.pool
        pool.check_integrity()
        assert self.heard.ends.keys() == set(self.submitted), "a request has not ended"
        self.counts["operations"] = operations
        self.counts["ended well"] = sum(end.error is None for end in self.heard.ends.values())
        self.counts["preemptions"] = self.engine._scheduler.preemptions
        self.counts["leaks"] = pool.num_blocks - pool.num_free
        self.engine.close()


def main() -> int:
    logging.disable(logging.ERROR)  # the failures are our own
    total, seconds = seeds.run(__doc__, lambda seed, each: Run(seed).go(each), operations=200_000, runs=100)
    told = (*_SHARES, "refused", "steps", "drafts", "preemptions", "ended well")
    print(", ".join(f"{name} {total[name]}" for name in told))
    print(f"cancelled outputs that a later step computed: {total['computed after cancel']}")
    print(f"operations {total['operations']}, leaks {total['leaks']}, {seconds:.0f} s")
    return 1 if total["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
