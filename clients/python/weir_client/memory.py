"""`weir memory`: what a model takes and how much of it a device holds, before anything is downloaded or loaded."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from weir_executor.memory.estimate import (
    WEIGHT_FORMATS,
    Capacity,
    DoesNotFitError,
    Estimate,
    Setup,
    capacity,
    estimate,
    gib,
    sequence_bytes,
)
from weir_executor.memory.shape import ModelShape, UnknownShapeError, read_shape

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_KV_DTYPES = ("float32", "bfloat16", "float16")


class _Size(click.ParamType[int]):
    """Bytes: `80G`, `512MiB`, `1073741824`."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size such as 80G or 512M", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


@dataclass(frozen=True, slots=True)
class _Answer:
    shape: ModelShape
    setup: Setup
    context: int
    one: Estimate
    weights: dict[str, int]  # bytes by format, of each rank
    kept: int  # bytes of KV of one sequence of `context` tokens
    least: int  # the same, were layers with a window to keep no more than that
    memory: int | None
    capacity: Capacity | None

    def to_json(self) -> str:
        return json.dumps(
            {
                "architecture": self.shape.architecture,
                **asdict(self.setup),
                **asdict(self.one),
                "weight_bytes_by_format": self.weights,
                "sequence_tokens": self.context,
                "sequence_bytes": self.kept,
                "sequence_bytes_least": self.least,
                "memory_bytes": self.memory,
                "capacity": asdict(self.capacity) if self.capacity else None,
            }
        )

    def to_text(self) -> str:
        shape, setup = self.shape, self.setup
        ranks = f", each of {setup.tensor_parallel} ranks" if setup.tensor_parallel > 1 else ""
        lines = [
            f"{shape.architecture}: {shape.num_layers} layers, {shape.num_heads} heads, {shape.num_kv_heads} KV heads "
            f"of {shape.head_dim}{ranks}",
            "weights       " + ", ".join(f"{name} {gib(size)}" for name, size in self.weights.items()),
            f"KV            {self.one.kv_bytes_per_token / 1024:g} KiB per token, "
            f"{self.one.block_bytes / 1024:g} KiB per block of {setup.block_size} tokens, in {setup.kv_dtype}",
            f"one sequence  {gib(self.kept)} for {self.context} tokens{self._windows()}",
        ]
        if self.capacity is not None and self.memory is not None:
            held = self.capacity
            lines.append(
                f"{gib(self.memory):<13} {gib(held.kv_bytes)} for KV beside {setup.weights} weights: "
                f"{held.num_blocks} blocks, {held.tokens} tokens, "
                f"{held.concurrency} sequences of {held.context} at once"
            )
        return "\n".join(lines)

    def _windows(self) -> str:
        windowed = sum(window is not None for window in self.shape.windows)
        if not windowed:
            return ""
        return f"; {windowed} layers see a window only and could do with {gib(self.least)} in all"


def _dtype(name: str, default: str) -> str:
    return default if name == "auto" else name


@click.command("memory")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--memory", "memory_bytes", type=_Size(), help="Of each device, such as 80G: says how much fits.")
@click.option("--context", type=click.IntRange(1), help="Tokens of a sequence. Default: the model's longest.")
@click.option("--weights", type=click.Choice(["auto", *WEIGHT_FORMATS]), default="auto", help="Default: as saved.")
@click.option("--kv-dtype", type=click.Choice(["auto", *_KV_DTYPES]), default="auto", help="Default: as saved.")
@click.option("--block-size", type=click.IntRange(1, 1024), default=16, show_default=True, help="Tokens per KV block.")
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, show_default=True, help="Ranks that share it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, all sizes in bytes.")
def memory(
    *,
    model: Path,
    memory_bytes: int | None,
    context: int | None,
    weights: str,
    kv_dtype: str,
    block_size: int,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Bytes of weights and KV that MODEL takes, and what a device of a size holds.

    MODEL is a directory with a config.json, or the file: weights are not read and need not be there.

    \b
    Example:
      weir memory models/llama-3-8b --memory 24G --context 8192
    """
    try:
        shape = read_shape(model)
        setup = Setup(_dtype(weights, shape.dtype), _dtype(kv_dtype, shape.dtype), block_size, tensor_parallel)
        answer = _answer(shape, setup, memory_bytes, context or shape.max_model_len)
    except (UnknownShapeError, DoesNotFitError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(answer.to_json() if as_json else answer.to_text())


def _answer(shape: ModelShape, setup: Setup, memory_bytes: int | None, context: int) -> _Answer:
    one = estimate(shape, setup)
    formats = dict.fromkeys((setup.weights, "fp8", "int8", "int4"))
    weights = {name: estimate(shape, replace(setup, weights=name)).weight_bytes for name in formats}
    held = capacity(one, memory_bytes, context, setup.block_size) if memory_bytes is not None else None
    kept, least = sequence_bytes(shape, setup, context)
    return _Answer(shape, setup, context, one, weights, kept, least, memory_bytes, held)
