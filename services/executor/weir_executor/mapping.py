"""`Submit` and `EmbedRequest` → `GenerationRequest`, nothing else. Pure: no I/O, no clock, no gRPC.

`replies.py` is the way back. Whatever is wrong with what was asked is raised here as an error that names the field and
its limit, before the engine sees it. The limits are those that executor.proto and sampling.proto state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.embedding_pb2 import Pooling as ProtoPooling
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.kvstore.v1.block_hash import DIGEST_BYTES, HashScope, block_hash, block_hashes, scope_root, split_hashes
from weir_chassis.durations import seconds_of
from weir_chassis.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    PromptTooLong,
    RevisionMismatch,
    Unsupported,
)
from weir_executor.engine import AdapterInfo, EngineInfo
from weir_executor.guided.guide import Guide
from weir_executor.guided.mapping import to_guide
from weir_executor.handoff.role import Role
from weir_executor.ranges import Range, check_vocabulary
from weir_executor.request import GenerationRequest, Pooling, PoolingKind, Sampling, Watermark
from weir_executor.sampling_mapping import to_max_draft_tokens, to_n, to_sampling, to_speculation_mode
from weir_executor.watermark.keys import WatermarkKeys
from weir_executor.watermark.mapping import to_watermark

MAX_STOP_TOKENS, MAX_EMBED_INPUTS = 64, 256
MAX_MARKED_TOKENS = 65_536
# Of request ids, model names and salts: long enough for any name, short enough for a log line.
MAX_NAME_BYTES = 128
# Salts are few per deployment; a root costs 2 µs to compute, so a forgotten one is no loss.
_MAX_KNOWN_ROOTS = 1024


_PRIORITY = Range(-100, 100)
_POOLING_KINDS: Mapping[ProtoPooling.ValueType, PoolingKind] = {
    ProtoPooling.POOLING_UNSPECIFIED: PoolingKind.LAST,
    ProtoPooling.POOLING_MEAN: PoolingKind.MEAN,
    ProtoPooling.POOLING_LAST: PoolingKind.LAST,
}


@dataclass(frozen=True, slots=True)
class Served:
    """What this executor serves: what a `Submit` is checked against. Constant while the process runs."""

    version: ModelVersion
    info: EngineInfo
    default_sampling: Sampling  # the model's own; the parameters that a request leaves unset
    takes_guides: bool = False
    watermark_keys: WatermarkKeys | None = None  # None: it has no key, or the engine cannot
    role: Role = Role.BOTH


def to_request(
    submit: pb.Submit,
    *,
    key: int,
    served: Served,
    draw_seed: Callable[[], int],
    adapter: AdapterInfo | None = None,
) -> GenerationRequest:
    """The request as the engine takes it: valid, and with every default filled in. `adapter` is the one that it names.

    Raises ModelNotFound, RevisionMismatch, PromptTooLong, or Unsupported and InvalidArgument naming the field.
    """
    info, sampling, stopping = served.info, submit.sampling, submit.stopping
    _check_bytes("request_id", submit.request_id)
    _check_bytes("tenant", submit.tenant)
    _check_version(submit.model_version, served.version)
    _check_prompt(submit.token_ids, info)
    scope = cache_scope(served.version, adapter, submit.tenant_salt)
    max_tokens = _max_tokens(stopping, len(submit.token_ids), info)
    n = to_n(sampling, info)
    _PRIORITY.check("priority", submit.priority)
    served.role.check(hand_off=submit.hand_off)
    return GenerationRequest(
        key=key,
        token_ids=list(submit.token_ids),
        max_tokens=max_tokens,
        block_hashes=_block_hashes(submit, info, scope),
        sampling=to_sampling(sampling, served.default_sampling, info, _watermark(submit, served), draw_seed),
        n=n,
        min_tokens=_min_tokens(stopping, max_tokens),
        stop_token_ids=_stop_token_ids(stopping, info),
        ignore_eos=stopping.ignore_eos,
        priority=submit.priority,
        tenant=submit.tenant,
        resumed=_resumed(submit.resumed_outputs, n, max_tokens, info),
        cache_scope=scope,
        adapter=adapter.name if adapter else "",
        speculation=to_speculation_mode(sampling, info),
        max_draft_tokens=to_max_draft_tokens(sampling, info),
        hand_off=submit.hand_off,
    )


def to_submitted_guide(submit: pb.Submit, served: Served) -> Guide | None:
    """The guide that outputs are to follow, still to be compiled. Raises Unsupported, InvalidArgument."""
    if not submit.sampling.HasField("guide"):
        return None
    if not served.takes_guides:
        raise Unsupported("sampling.guide: this executor follows no guides")
    return to_guide(submit.sampling.guide)


def to_pooling_requests(
    asked: pb.EmbedRequest, served: Served, adapter: AdapterInfo | None = None
) -> list[GenerationRequest]:
    """One request for each input, all with key 0. Hashes the inputs' blocks, so it is not for the event loop.

    Raises as `to_request` does.
    """
    info = served.info
    _check_bytes("request_id", asked.request_id)
    _check_bytes("tenant", asked.tenant)
    _check_version(asked.model_version, served.version)
    if not info.embedding_size:
        raise Unsupported("this engine makes no embeddings")
    if not 1 <= len(asked.inputs) <= MAX_EMBED_INPUTS:
        raise InvalidArgument("inputs", f"{len(asked.inputs)}; 1 to {MAX_EMBED_INPUTS}")
    _PRIORITY.check("priority", asked.priority)
    scope = cache_scope(served.version, adapter, asked.tenant_salt)
    pooling = Pooling(_pooling_kind(asked.pooling), not asked.HasField("normalize") or asked.normalize)
    prompts = [_embed_input(index, one, info) for index, one in enumerate(asked.inputs)]
    # What a mean would find in the cache it could not use, and what it would leave there nobody asked for.
    root = scope if pooling.kind is PoolingKind.LAST else b""
    return [
        GenerationRequest(
            key=0,
            token_ids=token_ids,
            max_tokens=0,
            block_hashes=block_hashes(root, token_ids, info.block_size) if root else (),
            priority=asked.priority,
            tenant=asked.tenant,
            cache_scope=root,
            pooling=pooling,
            adapter=adapter.name if adapter else "",
        )
        for token_ids in prompts
    ]


def to_marked_tokens(asked: pb.DetectWatermarkRequest, served: Served) -> tuple[Sequence[int], Watermark]:
    """What is to be tested for which watermark. Raises as `to_request` does."""
    _check_bytes("tenant", asked.tenant)
    _check_version(asked.model_version, served.version)
    if not 2 <= (count := len(asked.token_ids)) <= MAX_MARKED_TOKENS:
        raise InvalidArgument("token_ids", f"{count} tokens; 2 to {MAX_MARKED_TOKENS}")
    check_vocabulary("token_ids", asked.token_ids, served.info)
    return asked.token_ids, to_watermark("watermark", asked.watermark, asked.tenant, served.watermark_keys)


def seconds_left(submit: pb.Submit) -> float | None:
    """What is left of the client's deadline; None when it set none. Raises DeadlineExceeded when nothing is left."""
    if not submit.HasField("time_left"):
        return None
    seconds = seconds_of(submit.time_left)
    if seconds <= 0:
        raise DeadlineExceeded("no time was left when the request arrived")
    return seconds


def cache_scope(version: ModelVersion, adapter: AdapterInfo | None = None, tenant_salt: str = "") -> bytes:
    """The root that the prompt's block hashes were seeded with. Raises InvalidArgument.

    An adapter is in it by its fingerprint: one that comes back under the same name with other weights finds no block
    of the old ones.
    """
    _check_bytes("tenant_salt", tenant_salt)
    fingerprint = adapter.fingerprint if adapter else ""
    return _root(version.model, version.revision, version.tokenizer_hash, fingerprint, tenant_salt)


@lru_cache(maxsize=_MAX_KNOWN_ROOTS)
def _root(model: str, revision: str, tokenizer_hash: str, adapter: str, tenant_salt: str) -> bytes:
    return scope_root(HashScope(model, revision, tokenizer_hash, adapter, tenant_salt))


# ── what a Submit must satisfy ────────────────────────────────────────────────────────────────────────────────────────


def _check_bytes(field: str, text: str) -> None:
    # A string of at most 128/4 characters cannot be longer than 128 bytes, and most are: they need no encoding.
    if len(text) * 4 > MAX_NAME_BYTES and len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidArgument(field, f"longer than {MAX_NAME_BYTES} bytes")


def _check_version(asked: ModelVersion, ours: ModelVersion) -> None:
    if not asked.model:
        raise InvalidArgument("model_version.model", f"missing; 1 to {MAX_NAME_BYTES} bytes")
    _check_bytes("model_version.model", asked.model)
    if asked.model != ours.model:
        raise ModelNotFound(asked.model, [ours.model])
    if (asked.revision, asked.tokenizer_hash) != (ours.revision, ours.tokenizer_hash):
        # Cut, because these come from a stranger and go back in a trailer of bounded size.
        raise RevisionMismatch(
            f"this executor serves another revision of {ours.model!r}",
            metadata={
                "revision": ours.revision,
                "tokenizer_hash": ours.tokenizer_hash,
                "asked_revision": asked.revision[:MAX_NAME_BYTES],
                "asked_tokenizer_hash": asked.tokenizer_hash[:MAX_NAME_BYTES],
            },
        )


def _check_prompt(token_ids: Sequence[int], info: EngineInfo) -> None:
    if not token_ids:
        raise InvalidArgument("token_ids", f"missing; 1 to {info.max_model_len - 1} tokens")
    if len(token_ids) >= info.max_model_len:
        raise PromptTooLong("token_ids", len(token_ids) + 1, info.max_model_len)
    check_vocabulary("token_ids", token_ids, info)


def _embed_input(index: int, one: pb.EmbedInput, info: EngineInfo) -> list[int]:
    field, token_ids = f"inputs[{index}].token_ids", list(one.token_ids)
    if not token_ids:
        raise InvalidArgument(field, f"missing; 1 to {info.max_model_len} tokens")
    if len(token_ids) > info.max_model_len:
        raise PromptTooLong(field, len(token_ids), info.max_model_len)
    check_vocabulary(field, token_ids, info)
    return token_ids


def _pooling_kind(asked: ProtoPooling.ValueType) -> PoolingKind:
    if asked not in _POOLING_KINDS:
        raise InvalidArgument("pooling", f"{asked} is none of those that the contract knows")
    return _POOLING_KINDS[asked]


def _block_hashes(submit: pb.Submit, info: EngineInfo, scope: bytes) -> list[bytes]:
    full_blocks = len(submit.token_ids) // info.block_size
    if submit.block_hashes and len(submit.block_hashes) != full_blocks * DIGEST_BYTES:
        raise InvalidArgument(
            "block_hashes",
            f"{len(submit.block_hashes)} bytes; {DIGEST_BYTES} for each of the prompt's {full_blocks} full blocks of "
            f"{info.block_size} tokens, or none",
        )
    if submit.hand_off and full_blocks and not submit.block_hashes:
        raise InvalidArgument(
            "block_hashes", "missing; with hand_off the prompt's blocks need names to be asked for by"
        )
    hashes = split_hashes(submit.block_hashes)
    # The first proves that they were made of these tokens, for this model, tenant and block size: without it, one
    # tenant's salt forgotten on the way would show its blocks to another. The rest is the tokenizer's word.
    if hashes and hashes[0] != block_hash(scope, submit.token_ids[: info.block_size]):
        raise InvalidArgument("block_hashes", "not of these token_ids with this model_version, adapter and tenant_salt")
    return hashes


def _watermark(submit: pb.Submit, served: Served) -> Watermark | None:
    if not submit.sampling.HasField("watermark"):
        return None
    return to_watermark("sampling.watermark", submit.sampling.watermark, submit.tenant, served.watermark_keys)


def _max_tokens(stopping: StoppingConditions, prompt_tokens: int, info: EngineInfo) -> int:
    if not stopping.HasField("max_tokens"):
        return info.max_model_len - prompt_tokens
    if not stopping.max_tokens:
        raise InvalidArgument("stopping.max_tokens", "0; at least 1")
    if prompt_tokens + stopping.max_tokens > info.max_model_len:
        raise PromptTooLong("token_ids", prompt_tokens + stopping.max_tokens, info.max_model_len)
    return stopping.max_tokens


def _min_tokens(stopping: StoppingConditions, max_tokens: int) -> int:
    if stopping.min_tokens > max_tokens:
        raise InvalidArgument("stopping.min_tokens", f"{stopping.min_tokens}; at most max_tokens, {max_tokens}")
    return stopping.min_tokens


def _stop_token_ids(stopping: StoppingConditions, info: EngineInfo) -> frozenset[int]:
    if stopping.stop:
        raise InvalidArgument("stopping.stop", "must be empty here: stop strings are found by postprocess")
    if (count := len(stopping.stop_token_ids)) > MAX_STOP_TOKENS:
        raise InvalidArgument("stopping.stop_token_ids", f"{count} ids; at most {MAX_STOP_TOKENS}")
    check_vocabulary("stopping.stop_token_ids", stopping.stop_token_ids, info)
    return frozenset(stopping.stop_token_ids)


def _resumed(
    outputs: Sequence[pb.ResumedOutput], n: int, max_tokens: int, info: EngineInfo
) -> Mapping[int, Sequence[int]]:
    resumed: dict[int, Sequence[int]] = {}
    for i, output in enumerate(outputs):
        field = f"resumed_outputs[{i}]"
        if output.output_index >= n or output.output_index in resumed:
            raise InvalidArgument(f"{field}.output_index", f"{output.output_index}; each at most once and below n, {n}")
        if (count := len(output.token_ids)) > max_tokens:
            raise InvalidArgument(f"{field}.token_ids", f"{count} tokens; at most max_tokens, {max_tokens}")
        check_vocabulary(f"{field}.token_ids", output.token_ids, info)
        resumed[output.output_index] = list(output.token_ids)
    return resumed
