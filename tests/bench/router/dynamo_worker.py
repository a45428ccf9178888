"""A mock worker of NVIDIA Dynamo's own kind; runs in its environment.

python -m bench.router.dynamo_worker MODEL_DIR NAME
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime, dynamo_worker

from bench.router import clock_token
from bench.router.pace import read_pace


async def _generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
    count = request.get("stop_conditions", {}).get("max_tokens") or 16
    pace = read_pace()
    due = time.monotonic() + pace.step_seconds
    for index in range(count):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due += pace.period
        answer: dict[str, Any] = {"token_ids": [clock_token.now()]}
        if index == count - 1:
            answer["finish_reason"] = "length"
        yield answer


@dynamo_worker()  # type: ignore[untyped-decorator]
async def _main(runtime: DistributedRuntime) -> None:
    endpoint = runtime.endpoint("dynamo.backend.generate")
    kinds = ModelType.Chat | ModelType.Completions
    directory, name = sys.argv[1:]
    await register_model(ModelInput.Tokens, kinds, endpoint, directory, name, worker_type=WorkerType.Aggregated)
    await endpoint.serve_endpoint(_generate)


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(_main())
