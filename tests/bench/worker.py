"""One contender in a process of its own: reads `<workload> <salt>` lines, answers each with `{"seconds": …}`.

python -m bench.worker weir|transformers-static|transformers-continuous MODEL_DIR
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.workload import WORKLOADS, Work

os.environ.setdefault("HF_HUB_OFFLINE", "1")
Answer = Callable[[Work], list[list[int]]]


def main() -> None:
    contender, directory = sys.argv[1], Path(sys.argv[2])
    answer = CONTENDERS[contender](directory)
    _check(WORKLOADS["first_token"](-1), answer)  # warms up allocators and kernels
    print("ready", flush=True)
    for line in sys.stdin:
        name, salt = line.split()
        work = WORKLOADS[name](int(salt))
        began = time.perf_counter()
        _check(work, answer)
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def _check(work: Work, answer: Answer) -> None:
    """Answer, and insist that all the work was done."""
    lengths = [len(output) for output in answer(work)]
    assert lengths == work.lengths, (lengths, work.lengths)


def _weir(directory: Path) -> Answer:
    """Our bare engine: no gRPC, no other service."""
    from weir.kvstore.v1.block_hash import HashScope, block_hashes, scope_root
    from weir_executor.engine import GenerationRequest, Sampling, StepOutput
    from weir_executor.paged.engine import PagedEngineConfig, load_engine

    config = PagedEngineConfig(directory, kv_cache_bytes=2 << 30, max_num_seqs=64, num_threads=os.cpu_count())
    engine, steps = load_engine(config), queue.SimpleQueue[StepOutput]()
    engine.start(steps.put)
    root, greedy = scope_root(HashScope("bench", "", "")), Sampling(temperature=0.0)

    def answer(work: Work) -> list[list[int]]:
        for key, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
            hashes = block_hashes(root, prompt, engine.info.block_size)
            engine.submit(GenerationRequest(key, prompt, length, hashes, greedy, ignore_eos=True, cache_scope=root))
        outputs: list[list[int]] = [[] for _ in work.prompts]
        ended = 0
        while ended < len(outputs):
            step = steps.get(timeout=300)
            for output in step.outputs:
                outputs[output.key].extend(output.token_ids)
            for end in step.ended:
                assert end.error is None, end.error
                ended += 1
        return outputs

    return answer


def _transformers_static(directory: Path) -> Answer:
    """`generate` on padded batches; requests are sorted by output length, so that a batch wastes little."""
    import torch

    model = _transformers_model(directory)

    def batch(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        width, most = max(map(len, prompts)), max(lengths)
        ids = torch.full((len(prompts), width), 2)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=2
            )
        return [out[row, width : width + length].tolist() for row, length in enumerate(lengths)]

    def answer(work: Work) -> list[list[int]]:
        order = sorted(range(len(work.prompts)), key=lambda i: work.lengths[i])
        outputs: list[list[int]] = [[] for _ in order]
        for start in range(0, len(order), 16):
            rows = order[start : start + 16]
            answered = batch([work.prompts[i] for i in rows], [work.lengths[i] for i in rows])
            for i, output in zip(rows, answered, strict=True):
                outputs[i] = output
        return outputs

    return answer


def _transformers_continuous(directory: Path) -> Answer:
    """Transformers' own continuous batching, with block sharing."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _transformers_model(directory)
    generation = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=2)
    settings = ContinuousBatchingConfig(page_size=64, num_blocks=1024, max_batch_tokens=512, allow_block_sharing=True)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=settings)
    manager.start()

    def answer(work: Work) -> list[list[int]]:
        index = {
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1): i
            for i, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True))
        }
        outputs: list[list[int]] = [[] for _ in index]
        left = len(index)
        while left:
            result = manager.get_result(timeout=1)
            assert result is not None or manager.is_running(), "continuous batching stopped"
            if result is not None and result.is_finished():
                outputs[index[result.request_id]] = list(result.generated_tokens)
                left -= 1
        return outputs

    return answer


def _transformers_model(directory: Path):  # type: ignore[no-untyped-def]  # transformers has no types
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


CONTENDERS: dict[str, Callable[[Path], Answer]] = {
    "weir": _weir,
    "transformers-static": _transformers_static,
    "transformers-continuous": _transformers_continuous,
}

if __name__ == "__main__":
    main()
