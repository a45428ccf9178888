"""From an address to an engine: connect, ask who it is, send it a small request. All that may take minutes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

import grpc

from weir_chassis.errors import WeirError
from weir_executor.engine import EngineInfo
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.openengine.capabilities import Capabilities
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.engine import OpenEngine
from weir_executor.openengine.link import canary, closed
from weir_executor.openengine.server import Server

_log = logging.getLogger(__name__)
_MAX_N: Final = 16
_AGAIN_SECONDS, _CLOSE_SECONDS = 0.5, 5.0


def load_engine(config: OpenEngineConfig) -> OpenEngine:
    """Raises WrongServerError, and TimeoutError after `start_seconds`."""
    loop = LoopThread("openengine")
    try:
        server, can = loop.run(_connect(config)).result()
    except BaseException:
        loop.close(_CLOSE_SECONDS)
        raise
    info = make_info(config, can)
    _log.info("%s: %s, %d blocks of %d tokens", config.address, can.engine, info.num_blocks, info.block_size)
    return OpenEngine(server, can, config, info, loop)


def make_info(config: OpenEngineConfig, can: Capabilities) -> EngineInfo:
    block_size = can.block_size or config.block_size
    max_model_len = min(config.max_model_len, can.max_context or config.max_model_len)
    max_num_seqs = min(config.max_num_seqs, can.max_running or config.max_num_seqs)
    return EngineInfo(
        engine="openengine",
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=can.num_blocks or config.num_blocks or -(-max_model_len // block_size) * max_num_seqs,
        max_num_seqs=max_num_seqs,
        max_n=_MAX_N,
        max_top_logprobs=can.max_top_logprobs,
        eos_token_ids=config.eos_token_ids,
        block_bytes=0,
        kv_dtype="",
        kv_layout="openengine",
        transfers_blocks=False,
        takes_guides=bool(can.guides),
        max_adapters=can.max_loras,
        max_adapter_rank=config.max_adapter_rank if can.max_loras else 0,
        compute=can.engine,
        # Nothing in the contract says what a seed's draws depend on.
        draws_anew=True,
    )


async def _connect(config: OpenEngineConfig) -> tuple[Server, Capabilities]:
    server = Server(config.address, config.tls_ca_file, config.call_seconds)
    try:
        async with asyncio.timeout(config.start_seconds):
            return server, await _until_ready(server, config)
    except BaseException:
        await server.close()
        raise


async def _until_ready(server: Server, config: OpenEngineConfig) -> Capabilities:
    said = ""
    while True:
        try:
            can = await server.describe(config.model)
            if (why := closed(await server.health())) is not None:
                raise why
            first = f"weir-first-{time.monotonic_ns()}"
            await canary(server, config.model, min(config.eos_token_ids), first, config.stall_seconds)
        except grpc.aio.AioRpcError as error:
            now = f"{error.code().name}: {error.details()}"
        except WeirError as error:
            now = error.message
        else:
            return can
        if now != said:
            _log.warning("waiting for the server at %s: %s", config.address, now)
        said = now
        await asyncio.sleep(_AGAIN_SECONDS)
