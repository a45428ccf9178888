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

from weir_executor.engine import EngineInfo
from weir_executor.foreign.live import LiveRequest
from weir_executor.foreign.salts import private_salt, scope_of, shared_salt, shares_blocks
from weir_executor.request import GenerationRequest
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.retention import Retention, make_retention
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

    def __init__(
        self,
        llm: Any,
        library: Library,
        can: Capabilities,
        info: EngineInfo,
        *,
        machine_id: int,
        retention: Retention,
    ) -> None:
        self._llm, self._library, self._can, self._info = llm, library, can, info
        self._machine_id, self._retention = machine_id, retention
        self.adapters: dict[str, Any] = {}
        self._salts = count(1)

    def salt(self, request: GenerationRequest) -> str:
        """Prompts find one another's blocks where they name the same scope, and nobody's where they name none."""
        if shares_blocks(request, self._info.block_size):
            return shared_salt(request.cache_scope)
        return private_salt(next(self._salts))

    def ask(self, live: LiveRequest, output_index: int, part: Part) -> Any:
        """The engine's RequestOutput. Raises as the engine does."""
        request = live.request
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
            "cache_salt": live.salt,
        }
        if self._can.priority:
            arguments["priority"] = 0.5 + request.priority / _PRIORITIES
        if self._can.retention:
            is_shared = scope_of(live.salt) is not None
            arguments["kv_cache_retention_config"] = make_retention(self._library, self._retention, is_shared=is_shared)
        if part in (Part.CONTEXT, Part.GENERATION):
            handed = live.handed[output_index] if part is Part.GENERATION else {}
            arguments["disaggregated_params"] = self._disaggregated(part, handed)
        return self._llm.generate_async(**arguments)

    def _disaggregated(self, part: Part, handed: Mapping[str, Any]) -> Any:
        fields = dict(handed)
        if part is Part.CONTEXT and self._can.make_disaggregated_id is not None:
            fields["disagg_request_id"] = self._can.make_disaggregated_id(self._machine_id)
        return self._library.DisaggregatedParams(request_type=part.value, **fields)
