"""Rotary position embedding: frequencies for each kind of scaling, and a table of cosines and sines by position.

    Su et al., "RoFormer" (arXiv 2104.09864); linear: Chen et al. (2306.15595); yarn: Peng et al. (2309.00071);
    llama3: Llama 3.1's own smoothing between kept and divided frequencies; longrope: Ding et al. (2402.13753).

"dynamic" grows its base with the sequence's length beyond the trained context. We serve no sequence that
long (`position_limit`), so it equals "default". "longrope" has one set of factors for contexts up to the original
length and one for longer ones. Which is used follows from the longest sequence that is served, not from the one at
hand: a key in the cache would else be turned by another set than the query that meets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from weir_executor.paged.model.config import Fields, ModelConfigError, RopeConfig


def rope_table(rope: RopeConfig, num_positions: int, device: torch.device) -> torch.Tensor:
    """[num_positions, 2, dim / 2] in float32: cosines and sines of each position."""
    try:
        frequencies, scale = _KINDS[rope.kind](rope, num_positions)
    except ModelConfigError as error:
        raise ModelConfigError(f"rope_type {rope.kind!r}: {error}") from error
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return (torch.stack((angles.cos(), angles.sin()), dim=1) * scale).to(device)


def _base(rope: RopeConfig) -> torch.Tensor:
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    return 1.0 / (rope.theta**exponents)


def _default(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    return _base(rope), 1.0


def _linear(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    return _base(rope) / Fields(rope.options).positive("factor"), 1.0


def _llama3(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    """Long waves are divided by the factor, short ones kept, those between blended."""
    options, frequencies = Fields(rope.options), _base(rope)
    factor = options.positive("factor")
    low, high = options.positive("low_freq_factor"), options.positive("high_freq_factor")
    trained = options.whole("original_max_position_embeddings")
    waves = 2 * math.pi / frequencies
    kept = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    """Dimensions that turn often within the trained context are kept, those that turn rarely divided, with a ramp."""
    options, frequencies = Fields(rope.options), _base(rope)
    factor = options.positive("factor")
    trained = options.whole("original_max_position_embeddings", rope.trained_positions)
    low = _yarn_dimension(options.positive("beta_fast", 32), trained, rope)
    high = _yarn_dimension(options.positive("beta_slow", 1), trained, rope)
    if options.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept, _yarn_scale(rope, factor)


def _yarn_dimension(turns: float, trained: int, rope: RopeConfig) -> float:
    """The dimension that turns this often within the trained context."""
    return rope.dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeConfig, factor: float) -> float:
    """What queries and keys are multiplied by, so that attention stays as sharp over more tokens."""
    options = Fields(rope.options)
    if options.get("attention_factor") is not None:
        return options.positive("attention_factor")
    mscale, all_dims = options.number("mscale", 0), options.number("mscale_all_dim", 0)
    if mscale and all_dims:
        return _yarn_mscale(factor, mscale) / _yarn_mscale(factor, all_dims)
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(rope: RopeConfig, num_positions: int) -> tuple[torch.Tensor, float]:
    """Every pair has a factor of its own, found by search. The farther the stretch, the sharper the attention."""
    factors = Fields(rope.options).numbers(f"{rope.variant(num_positions)}_factor")
    if len(factors) != rope.dim // 2:
        raise ModelConfigError(f"rope_type 'longrope' has {len(factors)} factors for {rope.dim // 2} pairs")
    return _base(rope) / torch.tensor(factors, dtype=torch.float32), _longrope_scale(rope)


def _longrope_scale(rope: RopeConfig) -> float:
    options = Fields(rope.options)
    if options.get("attention_factor") is not None:
        return options.positive("attention_factor")
    original = options.whole("original_max_position_embeddings", least=2)
    stretch = options.positive("factor", rope.trained_positions / original)
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


# (the rope, how many positions are served) → frequencies [dim / 2], and what cosines and sines are multiplied by.
_KINDS: dict[str, Callable[[RopeConfig, int], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
