"""vLLM on its CPU backend, in bf16. python -m bench.contenders.vllm MODEL_DIR"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from bench.contenders.serving import KV_CACHE_GIB, THREADS, Answer, serve
from bench.workload import Work

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# What the prefix cache takes for apart: prompts with different salts share no block.
_salts = itertools.count(1)


def load(directory: Path) -> Any:
    from vllm import LLM

    return LLM(
        str(directory),
        dtype="bfloat16",
        enable_prefix_caching=True,
        max_model_len=4096,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        seed=0,
        disable_log_stats=True,
    )


def answering(engine: Any) -> Answer:
    from vllm import SamplingParams

    def answer(work: Work) -> list[list[int]]:
        prompts = [_prompt(token_ids, work.cached) for token_ids in work.prompts]
        options = {"temperature": 0, "ignore_eos": True, "detokenize": False}
        sampling = [SamplingParams(max_tokens=n, min_tokens=n, **options) for n in work.lengths]
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return answer


def _prompt(token_ids: list[int], cached: bool) -> dict[str, object]:
    salt = {} if cached else {"cache_salt": str(next(_salts))}
    return {"prompt_token_ids": token_ids, **salt}


if __name__ == "__main__":
    os.environ.update(_ENVIRONMENT)  # before the import, which reads it
    serve(answering(load(Path(sys.argv[1]))))
