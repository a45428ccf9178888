"""Rotary position embedding: frequencies for each kind of scaling, and a table of cosines and sines by position.

    Su et al., "RoFormer" (arXiv 2104.09864); linear: Chen et al. (2306.15595); yarn: Peng et al. (2309.00071);
    llama3: Llama 3.1's own smoothing between kept and divided frequencies.

"dynamic" grows its base with the sequence's length beyond the trained context. We serve no sequence that
long (`position_limit`), so it equals "default".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from weir_executor.paged.model.config import ModelConfig, ModelConfigError, RopeConfig


def rope_table(config: ModelConfig, num_positions: int, device: torch.device) -> torch.Tensor:
    """[num_positions, 2, head_dim / 2] in float32: cosines and sines of each position."""
    try:
        frequencies, scale = _KINDS[config.rope.kind](config, config.rope)
    except KeyError as error:
        raise ModelConfigError(f"rope_type {config.rope.kind!r} needs {error.args[0]!r}") from error
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return (torch.stack((angles.cos(), angles.sin()), dim=1) * scale).to(device)


def position_limit(config: ModelConfig) -> int:
    """The longest sequence whose positions the table describes as the model was trained for."""
    options, limit = config.rope.options, config.max_position_embeddings
    if config.rope.kind == "yarn" and "original_max_position_embeddings" in options:
        return max(limit, int(float(options["factor"]) * int(options["original_max_position_embeddings"])))
    return limit


def _base(config: ModelConfig, rope: RopeConfig) -> torch.Tensor:
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    return 1.0 / (rope.theta**exponents)


def _default(config: ModelConfig, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    return _base(config, rope), 1.0


def _linear(config: ModelConfig, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    return _base(config, rope) / float(rope.options["factor"]), 1.0


def _llama3(config: ModelConfig, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Long waves are divided by the factor, short ones kept, those between blended."""
    options, frequencies = rope.options, _base(config, rope)
    factor = float(options["factor"])
    low, high = float(options["low_freq_factor"]), float(options["high_freq_factor"])
    trained = int(options["original_max_position_embeddings"])
    waves = 2 * math.pi / frequencies
    kept = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(config: ModelConfig, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Dimensions that turn often within the trained context are kept, those that turn rarely divided, with a ramp."""
    options, frequencies = rope.options, _base(config, rope)
    factor = float(options["factor"])
    trained = int(options.get("original_max_position_embeddings") or config.max_position_embeddings)
    low = _yarn_dimension(float(options.get("beta_fast") or 32), trained, config, rope)
    high = _yarn_dimension(float(options.get("beta_slow") or 1), trained, config, rope)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = (torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept, _yarn_scale(rope, factor)


def _yarn_dimension(turns: float, trained: int, config: ModelConfig, rope: RopeConfig) -> float:
    """The dimension that turns this often within the trained context."""
    return config.head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeConfig, factor: float) -> float:
    """What queries and keys are multiplied by, so that attention stays as sharp over more tokens."""
    given = rope.options.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dims = rope.options.get("mscale"), rope.options.get("mscale_all_dim")
    if mscale and all_dims:
        return _yarn_mscale(factor, float(mscale)) / _yarn_mscale(factor, float(all_dims))
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


_KINDS: dict[str, Callable[[ModelConfig, RopeConfig], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}
