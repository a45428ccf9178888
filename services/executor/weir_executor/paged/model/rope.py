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

from weir_executor.paged.model.config import ModelConfigError, RopeConfig


def rope_table(rope: RopeConfig, num_positions: int, device: torch.device) -> torch.Tensor:
    """[num_positions, 2, dim / 2] in float32: cosines and sines of each position."""
    try:
        frequencies, scale = _KINDS[rope.kind](rope, num_positions)
    except KeyError as error:
        raise ModelConfigError(f"rope_type {rope.kind!r} needs {error.args[0]!r}") from error
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return (torch.stack((angles.cos(), angles.sin()), dim=1) * scale).to(device)


def _base(rope: RopeConfig) -> torch.Tensor:
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    return 1.0 / (rope.theta**exponents)


def _default(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    return _base(rope), 1.0


def _linear(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    return _base(rope) / float(rope.options["factor"]), 1.0


def _llama3(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    """Long waves are divided by the factor, short ones kept, those between blended."""
    options, frequencies = rope.options, _base(rope)
    factor = float(options["factor"])
    low, high = float(options["low_freq_factor"]), float(options["high_freq_factor"])
    trained = int(options["original_max_position_embeddings"])
    waves = 2 * math.pi / frequencies
    kept = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(rope: RopeConfig, _: int) -> tuple[torch.Tensor, float]:
    """Dimensions that turn often within the trained context are kept, those that turn rarely divided, with a ramp."""
    options, frequencies = rope.options, _base(rope)
    factor = float(options["factor"])
    trained = int(options.get("original_max_position_embeddings") or rope.trained_positions)
    low = _yarn_dimension(float(options.get("beta_fast") or 32), trained, rope)
    high = _yarn_dimension(float(options.get("beta_slow") or 1), trained, rope)
    if options.get("truncate", True):
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
    given = rope.options.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dims = rope.options.get("mscale"), rope.options.get("mscale_all_dim")
    if mscale and all_dims:
        return _yarn_mscale(factor, float(mscale)) / _yarn_mscale(factor, float(all_dims))
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(rope: RopeConfig, num_positions: int) -> tuple[torch.Tensor, float]:
    """Every pair has a factor of its own, found by search. The farther the stretch, the sharper the attention."""
    options = rope.options
    original = int(options["original_max_position_embeddings"])
    factors = torch.tensor(options[f"{rope.variant(num_positions)}_factor"], dtype=torch.float32)
    if len(factors) != rope.dim // 2:
        raise ModelConfigError(f"rope_type 'longrope' has {len(factors)} factors for {rope.dim // 2} pairs")
    return _base(rope) / factors, _longrope_scale(rope, original)


def _longrope_scale(rope: RopeConfig, original: int) -> float:
    given = rope.options.get("attention_factor")
    if given is not None:
        return float(given)
    stretch = float(rope.options.get("factor") or rope.trained_positions / original)
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
