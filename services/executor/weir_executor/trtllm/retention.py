"""How long the engine keeps a request's blocks when it needs room → `KvCacheRetentionConfig`. Pure.

Blocks of higher priority are pushed out later: [0, 100], 35 where nothing is said. After its duration a block's
priority is 35 again. Blocks under a salt of their own are found by nobody once their request has ended: they go first.
(https://nvidia.github.io/TensorRT-LLM: KV cache system, "Priority-Based Eviction".) Versions of the second cache
manager do not look at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from weir_executor.trtllm.library import Library

DEFAULT_PRIORITY: Final = 35
_FIRST_TO_GO: Final = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """Of blocks that others may find. Seconds of None: for good."""

    prompt_priority: int = DEFAULT_PRIORITY
    prompt_seconds: float | None = None
    output_priority: int = DEFAULT_PRIORITY
    output_seconds: float | None = None


_PRIVATE: Final = Retention(prompt_priority=_FIRST_TO_GO, output_priority=_FIRST_TO_GO)


def make_retention(library: Library, asked: Retention, *, is_shared: bool) -> Any:
    """None: as the engine does it by itself."""
    how = asked if is_shared else _PRIVATE
    if how == Retention():
        return None
    kind = library.KvCacheRetentionConfig
    prompt = kind.TokenRangeRetentionConfig(0, None, how.prompt_priority, _duration(how.prompt_seconds))
    return kind([prompt], how.output_priority, _duration(how.output_seconds))


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
