"""The processes of the other ranks, as rank 0 holds them: started together, told in order, watched, ended together."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.parallel.command import Command, RankConfig, Ready, Refused, Stop
from weir_executor.paged.parallel.group import RankLostError
from weir_executor.paged.parallel.rank import run_rank

_log = logging.getLogger(__name__)
# To leave by itself after the last step; a rank that stands still is killed then.
_STOP_SECONDS = 5.0


class Crew:
    """Thread-safe: the step thread tells, a watcher notices deaths, whoever closes ends it."""

    def __init__(self, configs: list[RankConfig]) -> None:
        """Starts one process for each of `configs`. They are loading when this returns."""
        context = multiprocessing.get_context("spawn")  # a fork would share the threads' locks and the device
        self._lock = threading.Lock()
        self._error: RankLostError | None = None
        self._closing = False
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for config in configs:
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(config, theirs), name=f"rank-{config.rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        threading.Thread(target=self._watch, name="watch-ranks", daemon=True).start()

    def await_ready(self) -> None:
        """Raises `ModelConfigError` with what a rank found wrong, RankLostError when one died."""
        for rank, pipe in enumerate(self._pipes, start=1):
            try:
                word = pipe.recv()
            except EOFError as error:
                raise RankLostError(f"rank {rank} died while it was loading") from error
            if isinstance(word, Refused):
                raise ModelConfigError(f"rank {rank}: {word.error}")
            assert isinstance(word, Ready), word
            _log.info("rank %d is ready", rank)

    def tell(self, command: Command) -> None:
        """To all of them. Raises RankLostError."""
        self.tell_each(lambda _: command)

    def tell_each(self, command: Callable[[int], Command]) -> None:
        """To each rank its own. Raises RankLostError."""
        with self._lock:
            self.check()
            for rank, pipe in enumerate(self._pipes, start=1):
                try:
                    pipe.send(command(rank))
                except OSError as error:
                    raise self._lost(rank) from error

    def ask(self, command: Command) -> list[Any]:
        """Every rank's answer, in their order. Raises RankLostError."""
        self.tell(command)
        answers = []
        for rank, pipe in enumerate(self._pipes, start=1):
            try:
                answers.append(pipe.recv())
            except (EOFError, OSError) as error:
                raise self._lost(rank) from error
        return answers

    def check(self) -> None:
        """Raises RankLostError when a rank has died."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """After the last step. Idempotent."""
        with self._lock:
            self._closing = True
            for pipe in self._pipes:
                try:
                    pipe.send(Stop())
                except OSError:
                    continue  # it has died, which is what was wanted
        for process in self._processes:
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _watch(self) -> None:
        """A rank that dies takes the others with it: none can go on without it."""
        ended = wait([process.sentinel for process in self._processes])
        if self._closing:
            return
        rank = next(i for i, process in enumerate(self._processes, start=1) if process.sentinel in ended)
        self._error = self._lost(rank)
        _log.error("%s", self._error)
        for process in self._processes:
            process.kill()

    def _lost(self, rank: int) -> RankLostError:
        return RankLostError(f"rank {rank} died (exit code {self._processes[rank - 1].exitcode})")


def crew_configs(config: RankConfig) -> list[RankConfig]:
    """Of all ranks but the first, from the first's. On GPUs each has its own, in order from the first's."""
    ranks = range(1, config.layout.num_ranks)
    return [replace(config, rank=rank, device=device_of(config.device, rank)) for rank in ranks]


def device_of(first: str, rank: int) -> str:
    """ "cuda" and "cuda:2" name the first rank's device; every rank on a CPU shares it."""
    kind, _, index = first.partition(":")
    return first if kind == "cpu" else f"{kind}:{int(index or 0) + rank}"
