"""`adapter_config.json`, as PEFT writes it, → what an engine must know of a LoRA adapter. Pure.

Hu et al., "LoRA" (arXiv 2106.09685): W x + scale · B A x, with A of `rank` rows. The scale is alpha / rank, or
alpha / √rank for what was trained as rank-stabilised (Kalajdzievski, arXiv 2312.03732). What changes the result in
another way is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from weir_chassis.errors import InvalidArgument, Unsupported

CONFIG_FILE = "adapter_config.json"
# What adds something that is not B A x, or trains on another base than the one that is served.
_REFUSED_WHEN_SET = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
)
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ) move a part of it.
_KNOWN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    rank: int
    scale: float
    targets: tuple[str, ...]  # names of modules, or their last parts; empty: what the file holds counts
    all_layers: bool  # of those targets; else of some layers
    base_name: str  # of the model it was trained on: a name or a path; empty: not said
    base_revision: str


def parse_adapter_config(raw: Mapping[str, Any], max_rank: int) -> AdapterConfig:
    """Raises Unsupported for what this engine does not compute, InvalidArgument for what makes no sense."""
    if (kind := raw.get("peft_type", "LORA")) != "LORA":
        raise _unsupported("peft_type", kind)
    for name in _REFUSED_WHEN_SET:
        if raw.get(name):
            raise _unsupported(name, raw[name])
    if raw.get("bias", "none") != "none":
        raise _unsupported("bias", raw["bias"])
    if raw.get("init_lora_weights", True) not in _KNOWN_STARTS:
        raise _unsupported("init_lora_weights", raw["init_lora_weights"])
    rank = _rank(raw, max_rank)
    return AdapterConfig(
        rank=rank,
        scale=_scale(raw, rank),
        targets=_targets(raw.get("target_modules")),
        all_layers=not any(raw.get(name) for name in ("layers_to_transform", "layers_pattern", "exclude_modules")),
        base_name=str(raw.get("base_model_name_or_path") or ""),
        base_revision=str(raw.get("revision") or ""),
    )


def _rank(raw: Mapping[str, Any], max_rank: int) -> int:
    rank = raw.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _wrong("r", f"{rank!r} is no rank")
    if rank > max_rank:
        raise _wrong("r", f"rank {rank}; at most {max_rank} here")
    return rank


def _scale(raw: Mapping[str, Any], rank: int) -> float:
    alpha = raw.get("lora_alpha", 8)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not isfinite(alpha):
        raise _wrong("lora_alpha", f"{alpha!r} is no finite number")
    return alpha / sqrt(rank) if raw.get("use_rslora") else alpha / rank


def _targets(named: Any) -> tuple[str, ...]:
    if named is None or isinstance(named, str):
        return ()
    if not isinstance(named, Sequence) or not all(isinstance(name, str) for name in named):
        raise _wrong("target_modules", "neither a pattern nor a list of names")
    return tuple(sorted(named))


def _unsupported(name: str, value: Any) -> Unsupported:
    return Unsupported(f"{CONFIG_FILE}: {name} {_shown(value)} is not supported")


def _wrong(name: str, problem: str) -> InvalidArgument:
    return InvalidArgument("directory", f"{CONFIG_FILE}: {name}: {problem}")


def _shown(value: Any) -> str:
    return repr(value)[:80]
