"""The fakes as an installed package, for processes that import `tensorrt_llm` by themselves, and faults for these.

    PYTHONPATH=DIRECTORY:tests TLLM_FAKE_FAULTS=FOLDER python -m weir_executor

An executor's LLM does what the file in the folder says that has its port for a name: `hang`, `resume`, `die`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes.trtllm import llm

_PARAMS = (
    "CacheTransceiverConfig, CudaGraphConfig, DisaggregatedParams, GuidedDecodingParams, KvCacheConfig, "
    "KvCacheConnectorConfig, KvCacheRetentionConfig, LoraConfig, SchedulerConfig"
)
_MODULES: Mapping[str, str] = {
    "__init__": "from fakes.trtllm.package import LLM\nfrom fakes.trtllm.params import SamplingParams\n"
    "__version__ = '1.2.1'\ndef mpi_rank(): return 0",
    "executor/__init__": "",
    "executor/request": "from fakes.trtllm.params import LoRARequest",
    "executor/result": "from fakes.trtllm.results import Logprob",
    "executor/utils": "from fakes.trtllm.results import EngineDeadError, RequestError",
    "llmapi/__init__": f"from fakes.trtllm.params import {_PARAMS}",
    "llmapi/llm_args": "from fakes.trtllm.params import DecodingBaseConfig",
    "llmapi/disagg_utils": "",
}
_TESTS = Path(__file__).parents[2]


def install(directory: Path, faults: Path) -> dict[str, str]:
    """The environment of processes that shall find it."""
    for name, text in _MODULES.items():
        path = directory / "tensorrt_llm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    faults.mkdir()
    return {"PYTHONPATH": f"{directory}{os.pathsep}{_TESTS}", "TLLM_FAKE_FAULTS": str(faults)}


class LLM(llm.LLM):
    """Steps take a while, so that there is a middle in which something may happen."""

    def __init__(self, model: str, **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.step_seconds = 0.01
        file = Path(os.environ["TLLM_FAKE_FAULTS"]) / os.environ["WEIR_EXECUTOR_PORT"]
        threading.Thread(target=self._obey, args=(file,), name="obey", daemon=True).start()

    def _obey(self, file: Path) -> None:
        done = ""
        while True:
            told = file.read_text() if file.exists() else ""
            if told and told != done:
                {"hang": self.hang, "resume": self.resume, "die": self.die}[told]()
                done = told
            time.sleep(0.01)
