"""An engine over the fake LLM, small enough to reach its limits."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from contract.engine_contract import Listener
from fakes.trtllm.llm import LLM, library
from models_fixture import tiny_model
from unit.executor.guide_tokens import save_tokenizer
from weir_executor.guided.guide import Guide
from weir_executor.trtllm import engine as engine_module
from weir_executor.trtllm.config import TrtConfig
from weir_executor.trtllm.engine import TrtEngine
from weir_executor.trtllm.load import load_engine


def config(**fields: Any) -> TrtConfig:
    small: dict[str, Any] = {
        "model_dir": tiny_model("llama3"),
        "max_model_len": 512,
        "block_size": 16,
        "kv_cache_max_tokens": 1024,
        "max_num_seqs": 4,
        "max_batched_tokens": 64,
    }
    return TrtConfig(**{**small, **fields})


@contextmanager
def running(lib: Any = None, **fields: Any) -> Iterator[tuple[TrtEngine, LLM, Listener]]:
    """One that has died would take this process with it when it is closed."""
    ended = threading.Event()
    engine, heard = load_engine(config(**fields), lib or library(), end_process=ended.set), Listener()
    llm: LLM = engine._llm
    engine.start(heard)
    try:
        yield engine, llm, heard
    finally:
        died = engine._lives.error is not None
        with patch.object(engine_module, "_SHUTDOWN_SECONDS", 0.0 if died else engine_module._SHUTDOWN_SECONDS):
            engine.close()
        assert not died or ended.wait(30), "it has not"
        assert not heard.wrongs, heard.wrongs


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not become so"
        time.sleep(0.001)


@cache
def model_dir() -> Path:
    """The tiny model, and the tokenizer that guides need."""
    directory = tiny_model("llama3")
    guided = directory.with_name(f"{directory.name}-guided")  # beside it, and gone with it
    shutil.copytree(directory, guided)
    save_tokenizer(guided)
    return guided


class Unchecked:
    """A guide that nobody has compiled."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide

    def start(self) -> Any:
        raise AssertionError("the engine follows it by itself")
