"""`adapter_model.safetensors` → a pair of matrices for each projection, checked against the model tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors

from weir_chassis.errors import InvalidArgument
from weir_executor.adapters.config import AdapterConfig
from weir_executor.adapters.files import WEIGHTS_FILE
from weir_executor.paged.lora.layers import Pair, Site

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Of names and offsets, before the tensors begin.
_HEADER_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class LoraWeights:
    pairs: Sequence[Pair | None]  # one for each of the model's sites

    @property
    def num_bytes(self) -> int:
        return sum(pair.num_bytes for pair in self.pairs if pair is not None)


def most_bytes(sites: Sequence[Site], max_rank: int) -> int:
    """What a weight file for these sites can hold at most, in float32."""
    values = sum(len(site.names) * site.columns + sum(site.rows) for site in sites) * max_rank
    return 4 * values + _HEADER_BYTES


def load_weights(
    data: bytes, config: AdapterConfig, sites: Sequence[Site], dtype: torch.dtype, device: torch.device
) -> LoraWeights:
    """Raises InvalidArgument naming the file and the tensor that is missing, unknown, misshapen or not finite."""
    try:
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _wrong(f"not a safetensors file: {error}") from error
    _check_names(tensors, config, sites)
    return LoraWeights([_pair(tensors, config, site, dtype, device) for site in sites])


def _check_names(tensors: Mapping[str, torch.Tensor], config: AdapterConfig, sites: Sequence[Site]) -> None:
    modules = [name for site in sites for name in site.names]
    known = {f"{_PREFIX}{name}{kind}" for name in modules for kind in (_DOWN, _UP)}
    for name in sorted(tensors):
        if name not in known:
            raise _wrong(f"tensor {name[:200]!r} is of no projection that an adapter may change in this model")
    if not tensors:
        raise _wrong("it holds no tensors")
    for target in config.targets:
        targeted = [name for name in modules if name == target or name.endswith(f".{target}")]
        missing = [name for name in targeted if f"{_PREFIX}{name}{_DOWN}" not in tensors]
        if not targeted or len(missing) == len(targeted) or (missing and config.all_layers):
            raise _wrong(f"no tensor {f'{_PREFIX}{(missing or [target])[0]}{_DOWN}'!r}, which target_modules names")


def _pair(
    tensors: Mapping[str, torch.Tensor], config: AdapterConfig, site: Site, dtype: torch.dtype, device: torch.device
) -> Pair | None:
    """Of the stacked modules, those that the adapter changes: their A side by side, their B on a diagonal."""
    changed = [i for i, name in enumerate(site.names) if any(_PREFIX + name + kind in tensors for kind in (_DOWN, _UP))]
    if not changed:
        return None
    rank, ends = config.rank, list(accumulate(site.rows))
    down, up = torch.zeros(len(changed) * rank, site.columns), torch.zeros(ends[-1], len(changed) * rank)
    for place, index in enumerate(changed):
        base, rows, own = _PREFIX + site.names[index], site.rows[index], slice(place * rank, (place + 1) * rank)
        down[own] = _tensor(tensors, base + _DOWN, (rank, site.columns))
        up[ends[index] - rows : ends[index], own] = _tensor(tensors, base + _UP, (rows, rank)) * config.scale
    kept = [_finite(part.to(dtype), site.names[0]) for part in (down, up)]
    return Pair(kept[0].to(device), kept[1].to(device))


def _tensor(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, int]) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise _wrong(f"tensor {name!r} is missing")
    if tuple(tensor.shape) != shape:
        raise _wrong(f"tensor {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
    if not tensor.is_floating_point():
        raise _wrong(f"tensor {name!r} is {tensor.dtype}, expected floating point")
    return _finite(tensor.float(), name)


def _finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise _wrong(f"tensor {name!r} holds what is not finite, in the file or in the engine's own precision")
    return tensor


def _wrong(problem: str) -> InvalidArgument:
    return InvalidArgument("directory", f"{WEIGHTS_FILE}: {problem}")
