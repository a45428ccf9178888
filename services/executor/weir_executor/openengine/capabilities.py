"""What a server says that it is and can do. Pure. What it does not say is not taken for a yes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.guided.guide import GuideKind

# The revision of the contract that was read and is tested. It may change without another package name.
REVISION: Final = 1
# Ours; of a server that names no limit of its own.
_MAX_TOP_LOGPROBS: Final = 20
_MODES: Mapping[pb.GuidedDecodingMode.ValueType, tuple[GuideKind, ...]] = {
    # Any object is a schema, and a choice is a grammar by the time that it comes here.
    pb.GUIDED_DECODING_MODE_JSON_SCHEMA: (GuideKind.JSON_SCHEMA, GuideKind.JSON_OBJECT),
    pb.GUIDED_DECODING_MODE_REGEX: (GuideKind.REGEX,),
    pb.GUIDED_DECODING_MODE_EBNF_GRAMMAR: (GuideKind.EBNF, GuideKind.CHOICE),
    pb.GUIDED_DECODING_MODE_STRUCTURAL_TAG: (GuideKind.STRUCTURAL_TAG,),
}


class WrongServerError(Exception):
    """It answers, and it is not the one that was meant: waiting makes it no better."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """None: it does not say."""

    engine: str  # with its version
    instance_id: str
    block_size: int | None
    num_blocks: int | None
    max_running: int | None
    max_batched_tokens: int | None
    max_context: int | None
    max_output: int | None
    logprobs: bool
    max_top_logprobs: int
    guides: frozenset[GuideKind]
    priority: bool
    cache_salt: bool
    cache_bypass: bool
    stop_in_output: bool
    max_loras: int  # 0: it has none

    def differs(self, other: Capabilities) -> str:
        """What requests have been told is so, and is not with `other`; empty: nothing."""
        constant = ("block_size", "max_context", "logprobs", "max_top_logprobs", "guides", "cache_salt", "max_loras")
        return next((name for name in constant if getattr(self, name) != getattr(other, name)), "")


def check_server(server: pb.ServerInfo) -> None:
    """Raises WrongServerError for a contract or a role that is not ours."""
    if server.schema_revision != REVISION:
        raise WrongServerError(f"its schema_revision is {server.schema_revision}; {REVISION} is known here")
    if server.minimum_client_revision > REVISION:
        raise WrongServerError(f"it wants clients of revision {server.minimum_client_revision}; this one is {REVISION}")
    if server.engine_role not in (pb.ENGINE_ROLE_UNSPECIFIED, pb.ENGINE_ROLE_AGGREGATED):
        raise WrongServerError(f"its engine_role is {pb.EngineRole.Name(server.engine_role)}: it does half of the work")


def check_model(server: pb.ServerInfo, model: pb.ModelInfo, wanted: str) -> None:
    """Raises WrongServerError. Some servers answer to any name: an answer proves nothing, the names in it do."""
    names = {*server.supported_models, model.model_id, model.served_model_name, *model.served_model_aliases}
    if wanted not in names:
        known = ", ".join(sorted(name for name in names if name)) or "none"
        raise WrongServerError(f"it does not serve {wanted!r}, but {known}")
    if model.HasField("supports_token_ids_input") and not model.supports_token_ids_input:
        raise WrongServerError("it takes no token ids")


def read_capabilities(server: pb.ServerInfo, model: pb.ModelInfo) -> Capabilities:
    capacity, can = server.capacity, model.generation
    logprobs = can.output_logprobs
    return Capabilities(
        engine=f"{server.engine_name or 'openengine'} {server.engine_version}".strip(),
        instance_id=server.instance_id,
        block_size=_told(capacity, "kv_block_size"),
        num_blocks=_told(capacity, "total_kv_blocks"),
        max_running=_told(capacity, "max_running_requests"),
        max_batched_tokens=_told(capacity, "max_batched_tokens"),
        max_context=_told(model, "max_context_length"),
        max_output=_told(model, "max_output_tokens"),
        logprobs=logprobs.supported,
        max_top_logprobs=_max_top(logprobs) if logprobs.supported else 0,
        guides=_guides(can.guided_decoding),
        priority=can.supports_priority,
        cache_salt=can.supports_cache_salt,
        cache_bypass=can.supports_prefix_cache_bypass,
        stop_in_output=can.supports_stop_in_output,
        # An adapter's blocks have a scope of their own, which only a salt can tell a server.
        max_loras=capacity.max_loras if model.supports_lora and can.supports_cache_salt else 0,
    )


def _told(message: pb.DeploymentCapacity | pb.ModelInfo, field: str) -> int | None:
    """Zero of anything would be a server that can do nothing: it stands for not knowing."""
    return int(getattr(message, field)) or None


def _max_top(logprobs: pb.LogprobCapabilities) -> int:
    if pb.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N not in logprobs.candidate_selection_modes:
        return 0
    return min(_MAX_TOP_LOGPROBS, logprobs.max_top_n) if logprobs.HasField("max_top_n") else _MAX_TOP_LOGPROBS


def _guides(told: pb.GuidedDecodingCapabilities) -> frozenset[GuideKind]:
    if not told.supported:
        return frozenset()
    return frozenset(kind for mode in told.modes for kind in _MODES.get(mode, ()))
