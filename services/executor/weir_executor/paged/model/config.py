"""`config.json` → what every part of the engine needs to know of a model. Each family adds its own in its own file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weir_executor.paged.model.quantization.scheme import WeightScheme

_FULL, _SLIDING = "full_attention", "sliding_attention"  # the words of `layer_types`
_ROPE_TYPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
_MISSING: Any = object()


class ModelConfigError(ValueError):
    """The model's configuration is missing, damaged, or describes what this engine cannot compute."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn queries and keys. `options` are the scaling's own numbers, by their names in `config.json`."""

    kind: str
    theta: float
    dim: int  # how many dimensions of a head turn, from its first
    trained_positions: int  # `max_position_embeddings`
    options: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        if self.kind not in _ROPE_TYPES:
            raise ModelConfigError(f"rope_type {self.kind!r} is not known here; known: {', '.join(_ROPE_TYPES)}")
        if self.dim % 2 or not self.dim:
            raise ModelConfigError(f"a rotary embedding turns pairs, and cannot turn {self.dim} dimensions")
        if self.theta <= 1:
            raise ModelConfigError(f"rope_theta {self.theta} is not above 1")

    @property
    def position_limit(self) -> int:
        """The longest sequence whose positions are as the model was trained for."""
        if self.kind == "yarn" and "original_max_position_embeddings" in self.options:
            options = Fields(self.options)
            stretched = options.positive("factor") * options.whole("original_max_position_embeddings")
            return max(self.trained_positions, int(stretched))
        return self.trained_positions

    def variant(self, num_positions: int) -> str:
        """Which of longrope's two sets of factors serves so many positions. Other kinds have no variants."""
        if self.kind != "longrope":
            return ""
        return "long" if num_positions > Fields(self.options).whole("original_max_position_embeddings") else "short"


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer's queries score keys."""

    scale: float  # queries are multiplied by it
    window: int | None = None  # a token sees this many newest tokens, itself included; None: all
    softcap: float | None = None  # scores become softcap · tanh(score / softcap)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What is said of any decoder. `attention` has one entry per layer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention: tuple[LayerAttention, ...]
    position_limit: int  # tokens of the longest sequence
    tie_word_embeddings: bool
    dtype: str
    eos_token_ids: frozenset[int] = frozenset()
    quantization: WeightScheme | None = None  # how the checkpoint keeps its weights narrow

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly")
        assert len(self.attention) == self.num_layers

    def kv_variant(self, _: int) -> str:
        """What keys and values depend on besides the model; they are shared only where it is equal."""
        return ""


class Fields:
    """The values of one JSON object, each checked as it is read. What is null counts as not given."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def get(self, name: str, default: Any = None) -> Any:
        value = self.raw.get(name)
        return default if value is None else value

    def whole(self, name: str, default: Any = _MISSING, least: int = 1) -> int:
        value = self._needed(name, default)
        if not _is_number(value) or value != int(value) or value < least:
            raise ModelConfigError(f"{name!r} is {value!r}, not a whole number of at least {least}")
        return int(value)

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self._needed(name, default)
        if not _is_number(value):
            raise ModelConfigError(f"{name!r} is {value!r}, not a finite number")
        return float(value)

    def positive(self, name: str, default: Any = _MISSING) -> float:
        value = self.number(name, default)
        if value <= 0:
            raise ModelConfigError(f"{name!r} is {value!r}, not above zero")
        return value

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """Null means none here: only an absent name takes the default."""
        if name not in self.raw:
            return default
        return None if self.raw[name] is None else self.positive(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self._needed(name, default)
        if not isinstance(value, bool):
            raise ModelConfigError(f"{name!r} is {value!r}, neither true nor false")
        return value

    def one_of(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self._needed(name, default)
        if value not in known:
            raise ModelConfigError(f"{name} {value!r} is not known here; known: {', '.join(known)}")
        return str(value)

    def inner(self, name: str) -> Fields:
        """An object inside this one; an empty one where there is none."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise ModelConfigError(f"{name!r} is {value!r}, not an object")
        return Fields(value)

    def items(self, name: str) -> list[Any]:
        value = self.get(name, [])
        if not isinstance(value, list):
            raise ModelConfigError(f"{name!r} is {value!r}, not a list")
        return value

    def numbers(self, name: str) -> list[float]:
        value = self._needed(name, _MISSING)
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            raise ModelConfigError(f"{name!r} is {value!r}, not a list of numbers")
        return [float(item) for item in value]

    def names(self, name: str) -> tuple[str, ...]:
        value = self.items(name)
        if not all(isinstance(item, str) for item in value):
            raise ModelConfigError(f"{name!r} is {value!r}, not a list of names")
        return tuple(value)

    def patterns(self, name: str) -> tuple[str, ...]:
        """Names of modules, each of which may be a regular expression, marked as one or not."""
        for pattern in self.names(name):
            try:
                re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                raise ModelConfigError(f"{name!r}: {pattern!r}: {error}") from error
        return self.names(name)

    def pair(self, name: str, default: tuple[int, int]) -> tuple[int, int]:
        """Of whole numbers above zero."""
        value = self.get(name, list(default))
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
            raise ModelConfigError(f"{name!r} is {value!r}, not two whole numbers")
        return value[0], value[1]

    def _needed(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is _MISSING:
            raise ModelConfigError(f"{name!r} is missing")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_fields(model_dir: Path) -> Fields:
    """Of `config.json`."""
    return Fields(_read_json(model_dir / "config.json"))


def read_eos_token_ids(model_dir: Path, fields: Fields) -> frozenset[int]:
    """`generation_config.json` goes before `config.json`."""
    path = model_dir / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id", fields.get("eos_token_id"))
    if eos is None:
        return frozenset()
    try:
        return frozenset(int(token_id) for token_id in (eos if isinstance(eos, list) else [eos]))
    except (TypeError, ValueError) as error:
        raise ModelConfigError(f"{model_dir}: eos_token_id {eos!r}: {error}") from error


def even_head_dim(hidden_size: int, num_heads: int) -> int:
    """In families whose heads share the hidden state among them."""
    if hidden_size % num_heads:
        raise ModelConfigError(f"{hidden_size} hidden features cannot be spread over {num_heads} heads evenly")
    return hidden_size // num_heads


def dtype_name(fields: Fields) -> str:
    return str(fields.get("dtype") or fields.get("torch_dtype") or "float32")


def parse_rope(options: Mapping[str, Any], head_dim: int, trained_positions: int, theta: float) -> RopeConfig:
    """From `rope_parameters` or the older `rope_scaling`; `theta` stands where the options do not name one."""
    known = Fields(options)
    kind = str(known.get("rope_type") or known.get("type") or "default")
    dim = int(head_dim * known.positive("partial_rotary_factor", 1.0))
    if dim > head_dim:
        raise ModelConfigError(f"a rotary embedding of {dim} dimensions is wider than a head of {head_dim}")
    return RopeConfig(kind, known.number("rope_theta", theta), dim, trained_positions, options)


def rope_options(fields: Fields) -> dict[str, Any]:
    """The one description behind two spellings: `rope_parameters` is newer than `rope_scaling` and its like."""
    options = {**fields.inner("rope_scaling").raw, **fields.inner("rope_parameters").raw}
    if fields.get("partial_rotary_factor") is not None:
        options.setdefault("partial_rotary_factor", fields.number("partial_rotary_factor"))
    return options


def sliding_window(fields: Fields, usually: bool) -> int | None:
    """Of the layers that have one; None where none has. `usually`: whether a window that is named is used."""
    if fields.get("sliding_window") is None or not fields.flag("use_sliding_window", usually):
        return None
    return fields.whole("sliding_window")


def layer_windows(
    fields: Fields, num_layers: int, window: int | None, slides: Callable[[int], bool] = lambda _: True
) -> list[int | None]:
    """Each layer's window: where `layer_types` says so, else where the family's layers usually have it, by index."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return [window if slides(index) else None for index in range(num_layers)]
    if len(fields.items("layer_types")) != num_layers:
        raise ModelConfigError(f"layer_types does not name {num_layers} layers")
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise ModelConfigError(f"layer_types {kind!r} is not known here; known: {_FULL}, {_SLIDING}")
    return [window if kind == _SLIDING else None for kind in kinds]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ModelConfigError(f"{path}: not a JSON object")
    return raw
