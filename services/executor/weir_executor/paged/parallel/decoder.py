"""Rank 0: tells the other ranks what each step is, does its own share, and hears what the last stage came to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from weir_executor.paged.decoder import Decoded
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.model.config import ModelConfig
from weir_executor.paged.parallel.blocks import ParallelBlocks
from weir_executor.paged.parallel.command import RankConfig, RunStep
from weir_executor.paged.parallel.crew import Crew, crew_configs
from weir_executor.paged.parallel.group import RankLostError, Ranks
from weir_executor.paged.parallel.stage import Stage, load_stage


class ParallelDecoder:
    """See `Decoder`. After an error the ranks are out of step with one another, so every error is the group's end."""

    def __init__(self, stage: Stage, crew: Crew) -> None:
        self._stage, self._crew = stage, crew

    def decode(self, batch: FlatBatch) -> Decoded:
        self._crew.tell(RunStep.of(batch))
        try:
            decoded = self._stage.run(batch)
            return self._stage.hear(batch) if decoded is None else decoded
        except RankLostError:
            raise
        except Exception as error:
            raise RankLostError(f"the ranks are out of step: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Parallel:
    """A model over several ranks, ready to decode."""

    decoder: ParallelDecoder
    blocks: ParallelBlocks
    check: Callable[[], None]  # raises RankLostError when a rank has died


def load_parallel(config: RankConfig, model_config: ModelConfig, resources: ExitStack) -> Parallel:
    """Start the other ranks, and load rank 0's part beside them. Raises as `load_stage`, `Crew.await_ready` do."""
    store = config.meeting.store(config.layout.num_ranks, is_master=True)
    crew = Crew(crew_configs(config.at_port(store.port)))
    resources.callback(crew.close)
    ranks = Ranks(config.layout, 0, store, torch.device(config.device), config.meeting.timeout_seconds)
    stage = load_stage(config, ranks)
    crew.await_ready()
    blocks = ParallelBlocks(stage.cache, crew, config.layout, model_config)
    return Parallel(ParallelDecoder(stage, crew), blocks, crew.check)
