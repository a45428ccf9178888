"""Trains one of the shipped models on the CPU, within a budget of minutes or of steps, and can resume.

The budget is minutes (the learning rate follows the clock, so that the run ends on time on a busy machine) or steps
(the same seed then gives the same weights on the same machine).

example:
  python -m deploy.models.train.data  --work /tmp/demo
  python -m deploy.models.train.train --work /tmp/demo --shape demo --minutes 75
"""

import argparse
import json
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .data import Rows, Stream, load_stream
from .model import Llama
from .optimizer import MasterWeights
from .shape import SHAPES

TOKENS_PER_STEP = 4096
"""Small, because tokens are dear on a CPU and a small model learns from small steps."""

ROW_LENGTH = 512
LONG_ROW_LENGTH = 2048
_LONG_FROM = 0.8
"""From this progress on, every second step has long rows, so that the model has seen every position that it claims."""

_SAVE_SECONDS = 60.0
"""A killed run loses at most this much."""

_WARM_UNTIL, _DECAY_FROM = 0.02, 0.55


@dataclass
class Progress:
    """What has been done so far: optimizer steps, tokens, seconds of wall clock, and the next document."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cursor: int = 0


@dataclass(frozen=True)
class Budget:
    """How much to do; exactly one of the two is set."""

    minutes: float | None
    steps: int | None

    def spent(self, progress: Progress) -> float:
        """The share of the budget that is used up, 0..1 and beyond."""
        if self.steps is not None:
            return progress.steps / self.steps
        assert self.minutes is not None
        return progress.seconds / (60 * self.minutes)


def rate_scale(spent: float) -> float:
    """Learning rate over its full value: a short rise, a plateau, then a straight line to zero."""
    if spent < _WARM_UNTIL:
        return 0.1 + 0.9 * spent / _WARM_UNTIL
    return min(1.0, max(0.0, (1 - spent) / (1 - _DECAY_FROM)))


@torch.no_grad()
def held_out_loss(model: Llama, stream: Stream, row_count: int, length: int = ROW_LENGTH) -> float:
    """Mean cross-entropy in nats per token over the first `row_count` rows of a stream."""
    rows = Rows(stream)
    losses = [model.loss(*rows.batch(1, length)).item() for _ in range(row_count)]
    return sum(losses) / len(losses)


class Trainer:
    """A model, its optimizer and its place in the data."""

    def __init__(self, work: Path, shape: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Llama(SHAPES[shape]).bfloat16()
        self.optimizer = MasterWeights(self.model)
        self.progress = Progress()
        self._train, self._held_out = load_stream(work, "train"), load_stream(work, "held_out")
        self._checkpoint = work / f"{shape}.pt"
        self._log = work / f"{shape}.jsonl"
        self._saved_at = time.monotonic()
        self._stop = threading.Event()

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one."""
        if self._checkpoint.exists():
            saved = torch.load(self._checkpoint, weights_only=True)
            self.optimizer.load(saved["optimizer"])
            self.progress = Progress(**saved["progress"])

    def save(self) -> None:
        """Writes the checkpoint whole or not at all."""
        partial = self._checkpoint.with_suffix(".partial")
        torch.save({"optimizer": self.optimizer.state(), "progress": asdict(self.progress)}, partial)
        partial.replace(self._checkpoint)
        self._saved_at = time.monotonic()

    def run(self, budget: Budget, eval_every: int) -> None:
        """Steps until the budget is spent or SIGTERM comes; evaluates and saves on the way and at the end."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        rows = Rows(self._train, self.progress.cursor)
        loss = math.nan
        while (spent := budget.spent(self.progress)) < 1.0 and not self._stop.is_set():
            began = time.monotonic()
            loss = self._step(rows, spent)
            self.progress.steps += 1
            self.progress.cursor = rows.cursor
            if self.progress.steps % eval_every == 0:
                self._report(spent, loss)
            if time.monotonic() - self._saved_at > _SAVE_SECONDS:
                self.save()
            self.progress.seconds += time.monotonic() - began
        self.save()
        self._report(spent, loss)

    def _step(self, rows: Rows, spent: float) -> float:
        length = LONG_ROW_LENGTH if spent > _LONG_FROM and self.progress.steps % 2 else ROW_LENGTH
        inputs, targets = rows.batch(TOKENS_PER_STEP // length, length)
        loss = self.model.loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(rate_scale(spent))
        self.progress.tokens += inputs.numel()
        assert math.isfinite(loss.item()), "the loss is not a number: lower the learning rate"
        return loss.item()

    def _report(self, spent: float, loss: float) -> None:
        line = asdict(self.progress) | {
            "spent": round(spent, 4),
            "rate": round(rate_scale(spent), 3),
            "loss": round(loss, 4),
            "held_out": round(held_out_loss(self.model, self._held_out, row_count=16), 4),
        }
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="directory with the encoded corpus; checkpoints go there"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eval-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="wall-clock budget, resumed time included")
    budget.add_argument("--steps", type=int, help="budget in optimizer steps, for a repeatable run")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(arguments.work, arguments.shape, arguments.seed)
    if arguments.resume:
        trainer.resume()
    trainer.run(Budget(arguments.minutes, arguments.steps), arguments.eval_every)


if __name__ == "__main__":
    main()
