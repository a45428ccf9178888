"""What a connector cannot be together with: refused before anything is loaded, by the name of the setting. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from weir_chassis.errors import Unsupported

# Of `LLM(...)`, what each must be at most; absent counts as that.
_AT_MOST: Final = {"pipeline_parallel_size": 1, "context_parallel_size": 1, "max_beam_width": 1}
# Each changes what a position or a block of a request means.
_UNSET: Final = ("speculative_config", "cache_transceiver_config", "enable_attention_dp")
_FULL_ATTENTION: Final = frozenset({"full_attention"})


def check_arguments(arguments: Mapping[str, Any], block_size: int) -> None:
    """Of the engine, as it will be or as it is. Raises Unsupported, naming the argument."""
    for name, most in _AT_MOST.items():
        if (value := arguments.get(name) or most) > most:
            raise Unsupported(f"{name} {value} with a connector to the kvstore: the limit is {most}")
    for name in _UNSET:
        if arguments.get(name):
            raise Unsupported(f"{name} with a connector to the kvstore: positions would not be what they seem")
    ranks, per_node = arguments.get("tensor_parallel_size") or 1, arguments.get("gpus_per_node")
    if per_node and ranks > per_node:
        raise Unsupported(
            f"tensor_parallel_size {ranks} on nodes of gpus_per_node {per_node} with a connector to the kvstore: "
            "its folder in memory is one host's"
        )
    _check_cache(arguments["kv_cache_config"], block_size)


def check_model(model: Mapping[str, Any]) -> None:
    """By its `config.json`. Raises Unsupported for state that blocks of all layers alike do not hold."""
    if model.get("sliding_window") and model.get("use_sliding_window", True):
        raise Unsupported(f"sliding_window {model['sliding_window']} with a connector to the kvstore")
    kinds = set(model.get("layer_types") or _FULL_ATTENTION)
    if others := sorted(kinds - _FULL_ATTENTION):
        raise Unsupported(f"layer_types {', '.join(others)} with a connector to the kvstore")


def _check_cache(cache: Any, block_size: int) -> None:
    if cache.tokens_per_block != block_size:
        raise Unsupported(
            f"tokens_per_block {cache.tokens_per_block} with a connector to the kvstore of block_size {block_size}"
        )
    if not cache.enable_block_reuse:
        raise Unsupported("enable_block_reuse false with a connector to the kvstore: it would be asked for nothing")
    if cache.enable_partial_reuse:
        raise Unsupported("enable_partial_reuse with a connector to the kvstore: half a block has no name")
    if cache.max_attention_window:
        raise Unsupported(f"max_attention_window {cache.max_attention_window} with a connector to the kvstore")
    if cache.host_cache_size or getattr(cache, "disk_cache_size", None):
        raise Unsupported("host_cache_size with a connector to the kvstore: the engine's own tiers exclude it")
    if cache.dtype == "nvfp4":
        raise Unsupported("kv dtype nvfp4 with a connector to the kvstore: its scales lie in a pool of their own")
    if getattr(cache, "use_kv_cache_manager_v2", False) is True:
        raise Unsupported("use_kv_cache_manager_v2 with a connector to the kvstore: requests there may begin anew")
