"""The whole suite: five processes as `weir up` starts them, one gRPC client, token-id prompts, all requests at once.

python -m bench.contenders.suite MODEL_DIR
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.contenders.serving import KV_CACHE_GIB, THREADS, serve
from bench.workload import Work
from servers import free_port
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_client.answer import collect
from weir_client.client import Client
from weir_local.placement import Placement, PlannedService, plan
from weir_local.processes import Events, started
from weir_local.stack import until_healthy

_REST_SECONDS = 3.0  # storing the blocks of `mixed` that were put off takes one
_GREEDY = SamplingParameters(temperature=0)


async def answer_all(client: Client, work: Work) -> list[list[int]]:
    async def one(prompt: list[int], length: int) -> list[int]:
        stopping = StoppingConditions(max_tokens=length, ignore_eos=True)
        answer = await collect(client.generate(prompt, sampling=_GREEDY, stopping=stopping))
        return answer.outputs[0].token_ids

    return await asyncio.gather(*map(one, work.prompts, work.lengths))


def planned(model_dir: Path) -> list[PlannedService]:
    """As `weir up --model` plans it, with as much KV cache and as many threads as the bare engine has."""
    placement = Placement(model_dir, port=0, kv_cache_mib=KV_CACHE_GIB << 10)
    threads = {"num_threads": str(THREADS)}
    return [
        replace(service, settings={**service.settings, **threads}) if service.service == "executor" else service
        for service in plan(placement, free_port)
    ]


def main(model_dir: Path) -> None:
    plans = planned(model_dir)
    silent = Events(ready=lambda *_: None, lost=lambda *_: None, changed=lambda *_: None)
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="weir-bench-") as logs:
        stack = started(plans, Path(logs), silent)
        runner.run(stack.__aenter__())
        try:
            runner.run(until_healthy(plans[-1].address, 1))
            client = Client(plans[-1].address)
            serve(lambda work: runner.run(answer_all(client, work)), rest_seconds=_REST_SECONDS)
            runner.run(client.close())
        finally:
            runner.run(stack.__aexit__(None, None, None))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
