"""`DisaggregatedParams` of a computed prompt's outputs ↔ the bytes by which another engine of the kind goes on. Pure.

    prefill   context_only ─▶ disaggregated_params of each output ─▶ pack ─▶ RequestEnd.handed_state
    decode    GenerationRequest.handed_state ─▶ unpack ─▶ generation_only, one for each output

The engines move the blocks between them; what is here says where they are. Bytes that cannot be read are worth nothing:
the prompt is computed then.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

# Of `DisaggregatedParams`, as far as a version has them. What is about images and logits is not handed over.
FIELDS: Final = (
    "first_gen_tokens",
    "first_gen_log_probs",
    "ctx_request_id",
    "opaque_state",
    "draft_tokens",
    "disagg_request_id",
    "ctx_dp_rank",
    "ctx_info_endpoint",
)
# The engine's own opaque state must be of the same release on both sides; ours is the number.
_OURS: Final = 1


def format_of(version: str) -> str:
    """Two engines of one format understand one another: those of one minor release."""
    return f"trtllm/{_OURS}/{'.'.join(version.split('.')[:2])}"


def pack(outputs: Mapping[int, Any]) -> bytes:
    """By output index, what the engine said."""
    told = {index: {name: _told(getattr(params, name, None)) for name in FIELDS} for index, params in outputs.items()}
    known = {index: {name: value for name, value in each.items() if value is not None} for index, each in told.items()}
    return json.dumps(known, separators=(",", ":")).encode()


def unpack(state: bytes, names: Iterable[str], make_logprob: Callable[..., Any]) -> dict[int, dict[str, Any]]:
    """By output index, keyword arguments among `names`, which are those that this version has.

    Raises ValueError for bytes that are not of `pack`. A field that this version lacks is one that it can do without.
    """
    raw = json.loads(state)
    if not isinstance(raw, dict) or not all(isinstance(each, dict) for each in raw.values()):
        raise ValueError("not the state of a handed over prompt")
    wanted = set(FIELDS) & set(names)
    return {
        int(index): {name: _read(name, value, make_logprob) for name, value in each.items() if name in wanted}
        for index, each in raw.items()
    }


def _told(value: Any) -> Any:
    """Bytes and log-probabilities as JSON has them; the rest is plain."""
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    if isinstance(value, list):
        return [_told_logprobs(each) if isinstance(each, Mapping) else each for each in value]
    return value


def _told_logprobs(entry: Mapping[int, Any]) -> list[list[Any]]:
    return [[token_id, float(each.logprob), each.rank] for token_id, each in entry.items()]


def _read(name: str, value: Any, make_logprob: Callable[..., Any]) -> Any:
    if name == "opaque_state":
        return b64decode(value, validate=True)
    if name == "first_gen_log_probs":
        return [_read_logprobs(entry, make_logprob) if isinstance(entry, list) else entry for entry in value]
    return value


def _read_logprobs(entry: list[list[Any]], make_logprob: Callable[..., Any]) -> dict[int, Any]:
    return {int(token_id): make_logprob(logprob=logprob, rank=rank) for token_id, logprob, rank in entry}
