"""transformers' continuous batching. python -m bench.contenders.transformers_continuous MODEL_DIR"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.contenders import transformers_model
from bench.contenders.serving import Answer, serve
from bench.workload import Work

_BLOCK, _BLOCKS = 64, 1024


class Manager:
    """Its block sharing is fixed when it starts, so work that may share and work that may not each have a manager."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._running: Any = None
        self._shares: bool | None = None

    def of(self, shares: bool) -> Any:
        if shares != self._shares:
            if self._running is not None:
                self._running.stop(block=True)
            self._running, self._shares = self._started(shares), shares
        return self._running

    def _started(self, shares: bool) -> Any:
        generation = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=2)
        settings = ContinuousBatchingConfig(
            page_size=_BLOCK, num_blocks=_BLOCKS, max_batch_tokens=512, allow_block_sharing=shares
        )
        manager = self._model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=settings
        )
        manager.start()
        return manager


def answering(managers: Manager) -> Answer:
    def answer(work: Work) -> list[list[int]]:
        manager = managers.of(work.cached)
        index = {
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1): i
            for i, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True))
        }
        return _collected(manager, index)

    return answer


def _collected(manager: Any, index: dict[str, int]) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in index]
    left = len(index)
    while left:
        result = manager.get_result(timeout=1)
        assert result is not None or manager.is_running(), "continuous batching stopped"
        if result is not None and result.is_finished():
            outputs[index[result.request_id]] = list(result.generated_tokens)
            left -= 1
    return outputs


if __name__ == "__main__":
    serve(answering(Manager(transformers_model.load(Path(sys.argv[1])))))
