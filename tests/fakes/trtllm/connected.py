"""The fake LLM with a connector: made as the engine makes it, in each rank's place, and called by `Ranks` in its order.

Blocks are real bytes here: what a request finds in them is right or wrong, and `counts` says how often it was wrong.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

from fakes.trtllm import llm
from fakes.trtllm.connector import connector_library
from fakes.trtllm.ranks import Live, Ranks
from weir_executor.trtllm.library import ConnectorLibrary


class ConnectedLLM(llm.LLM):
    _rank = 0  # of the process that a connector is made in

    def __init__(self, model: str, tensor_parallel_size: int = 1, **kwargs: Any) -> None:
        super().__init__(model, tensor_parallel_size=tensor_parallel_size, **kwargs)
        self._by_id: dict[int, Any] = {}
        how, cache = kwargs["kv_connector_config"], kwargs["kv_cache_config"]
        module = importlib.import_module(how.connector_module)
        arguments = SimpleNamespace(
            kv_cache_config=cache,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=kwargs["pipeline_parallel_size"],
            context_parallel_size=1,
            max_beam_width=kwargs["max_beam_width"],
            speculative_config=None,
            cache_transceiver_config=None,
            enable_attention_dp=False,
            gpus_per_node=8,
        )
        self.ranks = Ranks(
            getattr(module, how.connector_scheduler_class)(arguments),
            [
                self._worker(getattr(module, how.connector_worker_class), arguments, r)
                for r in range(tensor_parallel_size)
            ],
            num_blocks=self._pool.num_blocks,
            block_size=self._pool.block_size,
            chunk_tokens=self._max_num_tokens,
            max_running=self._max_batch_size,
            draw=self._draw_for,
        )

    def shutdown(self) -> None:
        super().shutdown()
        for worker in self.ranks.workers:
            worker.close()  # as each rank's process does at its exit

    @staticmethod
    def _worker(kind: Any, arguments: Any, rank: int) -> Any:
        ConnectedLLM._rank = rank
        return kind(arguments)

    def _step(self) -> list[Any]:
        self._admit()
        batch = [request.result for request in self._running]
        for request in list(self._running):
            if request.result.aborted and self._cancels(request):
                self.ranks.cancel(request.result.request_id)
        for live in self.ranks.iterate():
            request = self._by_id.pop(live.request_id)
            if request in self._running:
                self._finish(request, "cancelled")
        self._note(0, len(batch), 0)
        return batch

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            if request.result.aborted:
                self._finish(self._waiting.popleft(), "cancelled")
                continue
            result = request.result
            most = request.sampling.max_tokens
            live = self.ranks.admit(result.request_id, result.prompt_token_ids, request.salt, most)
            if live is None:
                return
            result.cached_tokens = live.position
            self._by_id[result.request_id] = request
            self._running.append(self._waiting.popleft())

    def _draw_for(self, live: Live) -> int:
        request = self._by_id[live.request_id]
        if not request.generated:
            self._pool.store(live.tokens, live.salt, request.lora)
        self._draw(request)
        live.over = request not in self._running
        return int(request.generated[-1])


def connected_library() -> ConnectorLibrary:
    """What `load_connector_library` finds in the process of the rank that is being made."""
    return connector_library(lambda: ConnectedLLM._rank)
