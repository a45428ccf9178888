"""OpenVINO GenAI's continuous batching, fp16 weights computed in bf16. python -m bench.contenders.openvino MODEL_DIR"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from bench.contenders.serving import KV_CACHE_GIB, THREADS, Answer, serve
from bench.workload import Work


def exported(directory: Path) -> Path:
    """The model in OpenVINO's own format, made beside it once."""
    target = directory.with_name(directory.name + "-openvino")
    if not (target / "openvino_model.bin").is_file():
        tool = Path(sys.executable).with_name("optimum-cli")
        options = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [str(tool), "export", "openvino", "-m", str(directory), *options, str(target)]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return target


def answering(directory: Path) -> Answer:
    import numpy
    import openvino
    import openvino_genai

    @cache
    def pipeline(shares: bool) -> Any:
        """Its prefix cache is fixed when it starts, so work that may share and work that may not each have one."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = KV_CACHE_GIB, 64, 2048
        scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = True, shares
        properties = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": THREADS}
        return openvino_genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", properties)

    def greedy(length: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = length
        config.ignore_eos, config.do_sample = True, False
        return config

    def answer(work: Work) -> list[list[int]]:
        prompts = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in work.prompts]
        results = pipeline(work.cached).generate(prompts, [greedy(length) for length in work.lengths])
        return [list(result.m_generation_ids[0]) for result in results]

    return answer


if __name__ == "__main__":
    serve(answering(exported(Path(sys.argv[1]))))
