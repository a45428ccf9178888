"""What is asked of the engine for one output: `generate_async`, with all of it said. Used on the engine's loop only.

WHOLE       its prompt and its tokens
FIRST       its prompt and its first token, which nobody fetches the blocks of
CONTEXT     its prompt and its first token; the blocks stay for another engine
GENERATION  what comes after the first token; the blocks are fetched from another engine
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any, Final

from weir_executor.engine import EngineInfo, GenerationRequest
from weir_executor.foreign.salts import private_salt, shared_salt, shares_blocks
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.sampling import sampling_arguments

_PRIORITIES: Final = 200.0  # ours are [-100, 100], the engine's [0, 1]


class Part(Enum):
    WHOLE = "whole"
    FIRST = "first"
    CONTEXT = "context_only"
    GENERATION = "generation_only"


@dataclass(slots=True)
class Asked:
    part: Part
    has_spoken: bool = False
    abort_due: bool = False  # as soon as it has

    @property
    def is_fetching(self) -> bool:
        """Its blocks are on the way from another engine."""
        return self.part is Part.GENERATION and not self.has_spoken


class Asker:
    """`adapters`: LoRARequest by name. `machine_id` sets this process's requests apart from those of other engines."""

    def __init__(self, llm: Any, library: Library, can: Capabilities, info: EngineInfo, machine_id: int) -> None:
        self._llm, self._library, self._can, self._info, self._machine_id = llm, library, can, info, machine_id
        self.adapters: dict[str, Any] = {}
        self._salts = count(1)

    def ask(self, request: GenerationRequest, output_index: int, part: Part, handed: Mapping[str, Any]) -> Any:
        """The engine's RequestOutput. `handed`: of DisaggregatedParams, for a GENERATION. Raises as the engine does."""
        resumed = request.resumed.get(output_index, ())
        sampling = sampling_arguments(
            request, output_index, self._info, self._can, self._library, goes_on=part is Part.GENERATION
        )
        if part in (Part.FIRST, Part.CONTEXT):
            sampling["max_tokens"], sampling["min_tokens"] = 1, min(1, sampling["min_tokens"] or 0) or None
        arguments: dict[str, Any] = {
            "inputs": [*request.token_ids, *(resumed if part is not Part.GENERATION else ())],
            "sampling_params": self._library.SamplingParams(**sampling),
            "lora_request": self.adapters.get(request.adapter),
            "streaming": part is not Part.CONTEXT,
            "cache_salt": self._salt(request),
        }
        if self._can.priority:
            arguments["priority"] = 0.5 + request.priority / _PRIORITIES
        if part in (Part.CONTEXT, Part.GENERATION):
            arguments["disaggregated_params"] = self._disaggregated(part, handed)
        return self._llm.generate_async(**arguments)

    def _disaggregated(self, part: Part, handed: Mapping[str, Any]) -> Any:
        fields = dict(handed)
        if part is Part.CONTEXT and self._can.make_disaggregated_id is not None:
            fields["disagg_request_id"] = self._can.make_disaggregated_id(self._machine_id)
        return self._library.DisaggregatedParams(request_type=part.value, **fields)

    def _salt(self, request: GenerationRequest) -> str:
        """Prompts find one another's blocks where they name the same scope, and nobody's where they name none."""
        if shares_blocks(request, self._info.block_size):
            return shared_salt(request.cache_scope)
        return private_salt(next(self._salts))
