"""A model's shape → bytes of weights and of KV, and what fits a memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from weir_executor.memory.shape import ModelShape

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
# Bits of a weight of a linear layer in the formats that checkpoints come in. Integers share a scale of 16 bits, and of
# 4 bits also a zero point, among 128; what is not in a linear layer keeps the dtype.
_NARROW_BITS = {"fp8": 8.0, "int8": 8 + 16 / 128, "int4": 4 + (16 + 4) / 128}
WEIGHT_FORMATS = (*_BYTES, *_NARROW_BITS)
# Of a device, for activations, the logits of a step and the allocator's own: not for weights and KV.
_WORKSPACE_SHARE = 0.1


class DoesNotFitError(ValueError):
    """Says what is needed, what there is, and what would fit."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is to be served."""

    weights: str  # one of WEIGHT_FORMATS
    kv_dtype: str
    block_size: int = 16  # tokens
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """In bytes, of each rank."""

    weight_bytes: int
    kv_bytes_per_token: int  # of a token that every layer keeps
    block_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a memory holds besides the weights."""

    kv_bytes: int
    num_blocks: int
    tokens: int
    context: int  # tokens of each sequence
    concurrency: int  # sequences of that length at once


def estimate(shape: ModelShape, setup: Setup) -> Estimate:
    """Raises ValueError for heads that cannot be spread over the ranks."""
    for name, heads in (("attention heads", shape.num_heads), ("KV heads", shape.num_kv_heads)):
        if heads % setup.tensor_parallel:
            raise ValueError(f"{heads} {name} cannot be spread over {setup.tensor_parallel} ranks")
    per_layer = 2 * shape.num_kv_heads // setup.tensor_parallel * shape.head_dim * _BYTES[setup.kv_dtype]
    per_token = shape.num_layers * per_layer
    return Estimate(weight_bytes(shape, setup), per_token, per_token * setup.block_size)


def weight_bytes(shape: ModelShape, setup: Setup) -> int:
    """Of one rank: its part of the matrices and of the output head, and all of the rest."""
    narrow = _NARROW_BITS.get(setup.weights)
    whole = _BYTES[setup.weights] if narrow is None else _BYTES.get(shape.dtype, 2)
    linear = shape.linear_weights * (whole if narrow is None else narrow / 8)
    split = linear + shape.head_weights * whole
    return int(split / setup.tensor_parallel) + (shape.embedding_weights + shape.other_weights) * whole


def sequence_bytes(shape: ModelShape, setup: Setup, tokens: int) -> tuple[int, int]:
    """KV of one sequence: as kept here, where a block holds all layers; and the least, were each layer to keep no more
    than it sees."""
    per_token = estimate(shape, setup).kv_bytes_per_token
    blocks = -(-tokens // setup.block_size)
    seen = sum(tokens if window is None else min(tokens, window) for window in shape.windows)
    return blocks * setup.block_size * per_token, per_token // shape.num_layers * seen


def capacity(one: Estimate, memory_bytes: int, context: int, block_size: int) -> Capacity:
    """Of a device with so much memory. Raises DoesNotFitError when it does not hold the weights and one sequence."""
    kv_bytes = int(memory_bytes * (1 - _WORKSPACE_SHARE)) - one.weight_bytes
    num_blocks = max(0, kv_bytes // one.block_bytes)
    per_sequence = -(-context // block_size)
    if num_blocks < per_sequence:
        raise DoesNotFitError(
            f"weights take {gib(one.weight_bytes)} and one sequence of {context} tokens "
            f"{gib(per_sequence * one.block_bytes)} of {gib(memory_bytes)}, a tenth of which is for the work itself"
        )
    return Capacity(kv_bytes, num_blocks, num_blocks * block_size, context, num_blocks // per_sequence)


def check_fit(one: Estimate, num_blocks: int, free_bytes: int) -> None:
    """Before anything is allocated. Raises DoesNotFitError with the numbers."""
    wanted = num_blocks * one.block_bytes
    if one.weight_bytes + wanted <= free_bytes:
        return
    left = (free_bytes - one.weight_bytes) // one.block_bytes
    would = f"{left} blocks ({left * one.block_bytes} bytes) would" if left > 0 else "not even the weights do"
    raise DoesNotFitError(
        f"out of memory: weights take {gib(one.weight_bytes)} and {num_blocks} KV blocks {gib(wanted)}, "
        f"{gib(free_bytes)} are free: {would} fit"
    )


def gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
