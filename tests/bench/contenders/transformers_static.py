"""transformers' `generate` on padded batches. python -m bench.contenders.transformers_static MODEL_DIR"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from bench.contenders import transformers_model
from bench.contenders.serving import Answer, serve
from bench.workload import Work

_BATCH = 16  # requests of like output length together, so that a batch wastes little
_PAD = 2


def answering(model: Any) -> Answer:
    def answer(work: Work) -> list[list[int]]:
        order = sorted(range(len(work.prompts)), key=lambda i: work.lengths[i])
        outputs: list[list[int]] = [[] for _ in order]
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            answered = _generate(model, [work.prompts[i] for i in rows], [work.lengths[i] for i in rows])
            for i, output in zip(rows, answered, strict=True):
                outputs[i] = output
        return outputs

    return answer


def _generate(model: Any, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    width, most = max(map(len, prompts)), max(lengths)
    ids = torch.full((len(prompts), width), _PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": _PAD}
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, **options)
    return [out[row, width : width + length].tolist() for row, length in enumerate(lengths)]


if __name__ == "__main__":
    serve(answering(transformers_model.load(Path(sys.argv[1]))))
