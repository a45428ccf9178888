"""The process of every rank but the first: load a part of the model, then do as rank 0 says until it says no more."""

from __future__ import annotations

import logging
import signal
import sys
from multiprocessing.connection import Connection

import torch

from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.weights import ModelLoadError
from weir_executor.paged.parallel.command import (
    ClearBlocks,
    Command,
    RankConfig,
    ReadBlocks,
    Ready,
    Refused,
    RunStep,
    Stop,
    WriteBlock,
)
from weir_executor.paged.parallel.group import RankLostError, Ranks
from weir_executor.paged.parallel.stage import Stage, load_stage

_log = logging.getLogger(__name__)


def run_rank(config: RankConfig, pipe: Connection) -> None:
    """Ends with rank 0: when it says so, and when its end of the pipe closes, however it died.

    Nothing else asks it to end: a signal to all of a service's processes means that rank 0 drains, with every rank.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    try:
        stage = _load(config)
    except (ModelConfigError, ModelLoadError, RankLostError, OSError, RuntimeError) as error:
        pipe.send(Refused(str(error)))
        sys.exit(1)
    pipe.send(Ready())
    try:
        while not isinstance(command := pipe.recv(), Stop):
            _obey(command, stage, config, pipe)
    except EOFError:
        return
    except Exception:
        _log.exception("rank %d failed", config.rank)
        sys.exit(1)


def _load(config: RankConfig) -> Stage:
    store = config.meeting.store(config.layout.num_ranks, is_master=False)
    device = torch.device(config.device)
    ranks = Ranks(config.layout, config.rank, store, device, config.meeting.timeout_seconds)
    return load_stage(config, ranks)


def _obey(command: Command, stage: Stage, config: RankConfig, pipe: Connection) -> None:
    with torch.inference_mode():
        match command:
            case RunStep():
                decoded = stage.run(command)
                if decoded is not None and config.rank == config.layout.rank(config.layout.last_stage, part=0):
                    stage.tell(command, decoded)
            case ReadBlocks(block_ids):
                pipe.send(stage.cache.read_blocks(block_ids))
            case WriteBlock(load):
                stage.cache.write_blocks([load])
            case ClearBlocks(block_ids):
                stage.cache.clear_blocks(block_ids)
