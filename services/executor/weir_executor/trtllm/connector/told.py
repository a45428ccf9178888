"""What the engine's processes are told: it has no options for connectors, and forwards variables of this beginning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "TLLM_WEIR_CONNECTOR"
# What the engine imports, in each of its processes.
MODULE: Final = "weir_executor.trtllm.connector.entry"
SCHEDULER: Final = "WeirScheduler"
WORKER: Final = "WeirWorker"


@dataclass(frozen=True, slots=True)
class Told:
    kvstore_address: str
    area: Path  # of `Area`
    block_size: int  # tokens
    kv_dtype: str  # as the engine was told
    queue_bytes: int  # of one rank's blocks on their way to the store
    bytes_per_second: float  # the slowest wire worth waiting for

    def encode(self) -> str:
        return json.dumps({**asdict(self), "area": str(self.area)})


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """For processes that are started meanwhile."""
    os.environ[VARIABLE] = told.encode()
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def read_told(environment: Mapping[str, str]) -> Told:
    """Raises ValueError."""
    text = environment.get(VARIABLE)
    if text is None:
        raise ValueError(f"{VARIABLE} is not set: this connector is for engines that the executor starts")
    raw = json.loads(text)
    return Told(**{**raw, "area": Path(raw["area"])})
