"""Our bare engine: no gRPC, no other service. python -m bench.contenders.weir MODEL_DIR [int8|int4]"""

from __future__ import annotations

import queue
import sys
from pathlib import Path

from bench.contenders.serving import KV_CACHE_GIB, THREADS, Answer, serve
from bench.workload import Work
from weir.kvstore.v1.block_hash import HashScope, block_hashes, scope_root
from weir_executor.engine import Engine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import StepOutput

_GREEDY = Sampling(temperature=0.0)
_ROOT = scope_root(HashScope("bench", "", ""))
_STEP_SECONDS = 60.0  # no step of these workloads takes as long: the engine hangs


def answering(engine: Engine) -> Answer:
    steps = queue.SimpleQueue[StepOutput]()
    engine.start(steps.put)

    def answer(work: Work) -> list[list[int]]:
        for key, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
            engine.submit(_request(engine, key, prompt, length, work.cached))
        try:
            return _collected(steps, len(work.prompts))
        except queue.Empty:
            raise TimeoutError(f"no step for {_STEP_SECONDS:.0f} s: {engine.load()}") from None

    return answer


def _request(engine: Engine, key: int, prompt: list[int], length: int, cached: bool) -> GenerationRequest:
    """Without hashes a prompt shares no block with another."""
    hashes = block_hashes(_ROOT, prompt, engine.info.block_size) if cached else ()
    return GenerationRequest(key, prompt, length, hashes, _GREEDY, ignore_eos=True, cache_scope=_ROOT)


def _collected(steps: queue.SimpleQueue[StepOutput], requests: int) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in range(requests)]
    ended = 0
    while ended < requests:
        step = steps.get(timeout=_STEP_SECONDS)
        for output in step.outputs:
            outputs[output.key].extend(output.token_ids)
        for end in step.ended:
            assert end.error is None, end.error
            ended += 1
    return outputs


if __name__ == "__main__":
    directory, weights = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "dtype"
    config = PagedEngineConfig(directory, kv_cache_bytes=KV_CACHE_GIB << 30, num_threads=THREADS, weights=weights)
    serve(answering(load_engine(config)))
