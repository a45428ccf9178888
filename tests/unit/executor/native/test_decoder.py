"""The native kernels against PyTorch's: random shapes, ragged batches, all instruction sets that run here."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from models_fixture import FAMILIES, save_model, tiny_model
from weir_executor.native.build import NativeUnavailableError, isas
from weir_executor.native.library import best_isa
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.batch import BlockLoad
from weir_executor.paged.decoder import Decoded, Decoder, TorchDecoder
from weir_executor.paged.flat_batch import FlatBatch
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.layers import DenseLinear
from weir_executor.paged.model.llama import LlamaModel
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.native.binding import load_library
from weir_executor.paged.native.decoder import NativeDecoder, why_not
from weir_executor.paged.workload import Workload

_CPU = torch.device("cpu")
_NUM_BLOCKS = 60
_TOKENS = [(37 * i + 11) % 300 + 3 for i in range(700)]


def _runs_here(isa: str) -> bool:
    try:
        return best_isa(load_library(), isa) == isa
    except NativeUnavailableError:
        return False


ISAS = [isa for isa in isas() if _runs_here(isa)]


@dataclass(frozen=True)
class Row:
    first: int
    count: int
    blocks: list[int]
    tokens: tuple[int, ...] = ()


def batch(rows: list[Row], wanted: list[int] | None = None, pooled: list[int] | None = None) -> FlatBatch:
    """All places are wanted unless it is said which."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    for row in rows:
        ids += row.tokens or _TOKENS[row.first : row.first + row.count]
        positions += range(row.first, row.first + row.count)
        ends.append(len(ids) - 1)
    places = list(range(len(ids))) if wanted is None else wanted
    return FlatBatch(rows, ids, positions, ends, places, best_only=False, pooled=pooled or [])  # type: ignore[arg-type]


def native(
    model_dir: Path, dtype: str, isa: str = "", *, block_size: int = 16, threads: int = 2, weight_bits: int = 0
) -> NativeDecoder:
    config = load_config(model_dir)
    assert why_not(config, getattr(torch, dtype), _CPU) is None
    model = load_model(model_dir, config, 700, getattr(torch, dtype), _CPU, make_linear=DenseLinear)
    assert isinstance(model, LlamaModel)
    workload = Workload(model_dir, config, getattr(torch, dtype), 700, block_size, _NUM_BLOCKS, weight_bits=weight_bits)
    return NativeDecoder(load_library(), workload, model, num_threads=threads, isa=isa)


def in_torch(model_dir: Path, dtype: str, block_size: int = 16) -> TorchDecoder:
    config, kind = load_config(model_dir), getattr(torch, dtype)
    model = load_model(model_dir, config, 700, kind, _CPU)
    attention = TorchAttention(KvCache(config, _NUM_BLOCKS, block_size, kind, _CPU), config.attention)
    return TorchDecoder(model, attention, _CPU)


def logits_of(decoder: Decoder, *batches: FlatBatch) -> list[torch.Tensor]:
    found = []
    with torch.inference_mode():
        for one in batches:
            decoded = decoder.decode(one)
            assert all(decoded.sound)
            assert decoded.logits is not None
            found.append(decoded.logits)
    return found


def blocks_of(tokens: int, block_size: int, seed: int = 1) -> list[int]:
    return random.Random(seed).sample(range(_NUM_BLOCKS), -(-tokens // block_size))


@cache
def shaped(**changes: Any) -> Path:
    config: Mapping[str, Any] = {**FAMILIES["llama_yarn"], "max_position_embeddings": 2048, **changes}
    return save_model(config, Path(mkdtemp(prefix="weir-shaped-")) / "model")


_SHAPES: list[dict[str, Any]] = [
    {"head_dim": 64, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 70},
    {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 333},
    {"head_dim": 80, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 58},
    {"head_dim": 6, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 1},
    {"head_dim": 32, "num_attention_heads": 40, "num_key_value_heads": 1, "vocab_size": 319},
    {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 258},
]


def _steps(block_size: int) -> list[FlatBatch]:
    """A chunk; then a decode of it beside a new chunk; then both go on, with drafts, beside a long one."""
    ids = blocks_of(_NUM_BLOCKS * block_size, block_size)
    one, other, long = ids[:15], ids[15:25], ids[25:]
    return [
        batch([Row(0, 70, one)]),
        batch([Row(70, 1, one), Row(0, 33, other)]),
        batch([Row(71, 1, one), Row(33, 1, other), Row(0, 150, long)]),
        batch([Row(72, 5, one), Row(34, 14, other), Row(150, 130, long)]),
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", _SHAPES, ids=lambda shape: f"{shape['num_attention_heads']}x{shape['head_dim']}")
def test_any_shape_by_every_instruction_set(shape: dict[str, Any], isa: str) -> None:
    model_dir, steps = shaped(**shape), _steps(16)
    found = logits_of(native(model_dir, "float32", isa), *steps)
    for ours, theirs in zip(found, logits_of(in_torch(model_dir, "float32"), *steps), strict=True):
        # Both round, and a near tie between scores makes much of it: number by number the oracle tests compare.
        assert (ours - theirs).norm() <= 5e-5 * theirs.norm()


def _drawn_shape(seed: int) -> dict[str, Any]:
    """Any that the kernels say they cover, and small enough for a test."""
    drawn = random.Random(seed)
    kv_heads = drawn.randint(1, 4)
    return {
        "head_dim": 2 * drawn.randint(2, 64),
        "num_attention_heads": kv_heads * drawn.randint(1, 6),
        "num_key_value_heads": kv_heads,
        "hidden_size": 2 * drawn.randint(4, 150),
        "intermediate_size": 2 * drawn.randint(4, 150),
        "vocab_size": drawn.randint(300, 700),
        "num_hidden_layers": drawn.randint(1, 3),
    }


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_drawn_shape_by_every_instruction_set(seed: int, isa: str) -> None:
    test_any_shape_by_every_instruction_set(_drawn_shape(seed), isa)


@pytest.mark.parametrize("block_size", [8, 24, 32])
def test_any_block_size(block_size: int) -> None:
    model_dir, steps = tiny_model("qwen2_windows"), _steps(block_size)
    found = logits_of(native(model_dir, "float32", block_size=block_size), *steps)
    for ours, theirs in zip(found, logits_of(in_torch(model_dir, "float32", block_size), *steps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_is_as_near_to_float32_as_pytorch_is(isa: str) -> None:
    model_dir, steps = shaped(**_SHAPES[0]), _steps(16)
    rounded = save_model_of_rounded_weights(model_dir)
    exact = torch.cat(logits_of(in_torch(rounded, "float32"), *steps))
    ours = torch.cat(logits_of(native(rounded, "bfloat16", isa), *steps))
    theirs = torch.cat(logits_of(in_torch(rounded, "bfloat16"), *steps))
    assert (ours - exact).square().mean() <= 1.1 * (theirs - exact).square().mean()


@cache
def save_model_of_rounded_weights(model_dir: Path) -> Path:
    """The same model with weights that bfloat16 holds exactly."""
    from safetensors.torch import load_file, save_file

    other = Path(mkdtemp(prefix="weir-rounded-"))
    (other / "config.json").write_text((model_dir / "config.json").read_text())
    weights = {name: weight.bfloat16() for name, weight in load_file(model_dir / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors")
    return other


# ── a token's numbers are its own ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bit_by_bit_the_same_alone_among_others_and_in_chunks(dtype: str, isa: str) -> None:
    """600 tokens are more than two chunks of attention; one sequence shares its first 512 with two others."""
    model_dir, mine, shared = shaped(**_SHAPES[0]), blocks_of(600, 16), 512 // 16
    spare = [block for block in range(_NUM_BLOCKS) if block not in mine]
    whole = logits_of(native(model_dir, dtype, isa, threads=1), batch([Row(0, 600, mine)]))[0]
    decoder = native(model_dir, dtype, isa, threads=3)
    parts = logits_of(
        decoder,
        batch([Row(0, 300, mine)]),
        batch([Row(300, 1, mine), Row(0, 40, spare[:3], tuple(range(40)))]),
        batch([Row(301, 211, mine)]),
        batch([Row(512, 87, mine), Row(40, 3, spare[:3], (5, 6, 7))]),
    )
    decoder.write_blocks([BlockLoad(spare[5], decoder.read_blocks([mine[shared]])[0])])
    siblings = [
        Row(513, 1, [*mine[:shared], spare[5]], (9,)),
        Row(599, 1, mine),
        Row(520, 1, [*mine[:shared], spare[6]]),
    ]
    parts += logits_of(decoder, batch([*siblings, Row(43, 17, spare[:4], tuple(range(17)))]))
    mine_only = [parts[0], parts[1][:1], parts[2], parts[3][:87], parts[4][1:2]]
    assert torch.equal(torch.cat(mine_only), whole)


# ── what is asked for besides logits ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", [319, 333, 320])
def test_the_best_are_those_of_the_logits(isa: str, vocab_size: int) -> None:
    decoder = native(shaped(vocab_size=vocab_size), "float32", isa)
    all_logits = batch([Row(0, 40, [3, 4, 5]), Row(0, 7, [6])])
    logits = logits_of(decoder, all_logits)[0]
    found = decoder.decode(_best_only(all_logits))
    assert found.logits is None
    assert found.best is not None
    assert torch.equal(found.best, logits.argmax(dim=-1))


def _best_only(flat: FlatBatch) -> FlatBatch:
    return FlatBatch(flat.rows, flat.token_ids, flat.positions, flat.ends, flat.wanted, True, flat.pooled)


def test_some_logits_and_hidden_states() -> None:
    flat = batch([Row(0, 40, [3, 4, 5]), Row(0, 7, [6])], wanted=[3, 39, 46], pooled=[0, 46])
    ours = native(tiny_model("qwen3"), "float32").decode(flat)
    theirs = _decode_in_torch(tiny_model("qwen3"), flat)
    for mine, other in ((ours.logits, theirs.logits), (ours.hidden, theirs.hidden)):
        assert mine is not None
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    nothing = native(tiny_model("qwen3"), "float32").decode(batch([Row(0, 40, [3, 4, 5])], wanted=[]))
    assert (nothing.logits, nothing.best, nothing.hidden, nothing.sound) == (None, None, None, [True])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bit_by_bit_the_same_whatever_else_of_the_prompt_is_read(dtype: str, isa: str) -> None:
    """The last layer leaves out what nobody reads, but its keys and values."""
    blocks = blocks_of(25 * 16, 16)
    rows = [Row(0, 300, blocks[:19]), Row(0, 1, blocks[19:20]), Row(0, 70, blocks[20:])]
    all_read, some_read = (native(shaped(**_SHAPES[0]), dtype, isa, threads=2) for _ in range(2))
    places = [17, 299, 300, 370]
    everything = logits_of(all_read, batch(rows))[0]
    something = logits_of(some_read, batch(rows, wanted=places))[0]
    assert torch.equal(something, everything[places])
    for mine, other in zip(some_read.read_blocks(blocks), all_read.read_blocks(blocks), strict=True):
        assert bytes(mine) == bytes(other)


def _decode_in_torch(model_dir: Path, flat: FlatBatch) -> Decoded:
    with torch.inference_mode():
        return in_torch(model_dir, "float32").decode(flat)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("best_only", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_poisoned_token_is_its_rows_alone(dtype: str, best_only: bool, isa: str) -> None:
    decoder = native(_poisoned(), dtype, isa)
    rows = [Row(0, 20, [1, 2]), Row(0, 20, [3, 4], (310, *range(3, 22))), Row(0, 1, [5], (310,)), Row(0, 30, [6, 7])]
    flat = batch(rows)
    assert decoder.decode(_best_only(flat) if best_only else flat).sound == [True, False, False, True]
    # What it wrote shows in whoever reads it later, and not after it is cleared.
    assert decoder.decode(batch([Row(20, 1, [3, 4])])).sound == [False]
    decoder.clear_blocks([3, 4])
    assert decoder.decode(batch([Row(20, 1, [3, 4])])).sound == [True]


@cache
def _poisoned() -> Path:
    from safetensors.torch import load_file, save_file

    model_dir = save_model(FAMILIES["llama2"], Path(mkdtemp(prefix="weir-poisoned-")) / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.embed_tokens.weight"][310] = torch.nan
    save_file(weights, model_dir / "model.safetensors")
    return model_dir


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_blocks_are_there_before_the_first_step_writes_them() -> None:
    """A page that has to be found holds a step up for milliseconds."""
    config, resident = load_config(tiny_model("llama3")), _resident_bytes()
    workload = Workload(tiny_model("llama3"), config, torch.float32, 700, 16, num_blocks=8000)
    model = load_model(workload.model_dir, config, 700, torch.float32, _CPU, make_linear=DenseLinear)
    assert isinstance(model, LlamaModel)
    decoder = NativeDecoder(load_library(), workload, model, num_threads=2)
    assert _resident_bytes() - resident > 0.9 * 8000 * decoder.block_bytes
    decoder.close()


def _resident_bytes() -> int:
    """Pages of a host's pool of huge ones are counted by themselves."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE))
    return 1024 * (int(kib["VmRSS"]) + int(kib.get("HugetlbPages", 0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("from_size", "family"), [(16, "llama3"), (32, "qwen3"), (5, "llama3")])
def test_a_payload_is_as_pytorchs_cache_has_it(dtype: str, from_size: int, family: str) -> None:
    """Written by one, read by the other, and back: executors of both kinds share a store."""
    config, decoder = load_config(tiny_model(family)), native(tiny_model(family), dtype, block_size=from_size)
    theirs = KvCache(config, 4, from_size, getattr(torch, dtype), _CPU)
    numbers = torch.randn(theirs.block_bytes // getattr(torch, dtype).itemsize).to(getattr(torch, dtype))
    payload = numbers.view(torch.uint8).numpy().tobytes()
    decoder.write_blocks([BlockLoad(7, memoryview(payload))])
    theirs.write_blocks([BlockLoad(3, payload)])
    assert decoder.read_blocks([7]) == theirs.read_blocks([3]) == [payload]
    assert decoder.read_blocks([6, 8]) == [bytes(len(payload))] * 2
    decoder.clear_blocks([7])
    assert decoder.read_blocks([7]) == [bytes(len(payload))]


def test_keys_and_values_are_where_the_payload_says() -> None:
    """What the kernels wrote, PyTorch goes on from."""
    model_dir, step, after = tiny_model("llama3"), batch([Row(0, 32, [3, 4])]), batch([Row(32, 8, [3, 4, 5])])
    ours, config = native(model_dir, "float32"), load_config(tiny_model("llama3"))
    logits_of(ours, step)
    cache = KvCache(config, _NUM_BLOCKS, 16, torch.float32, _CPU)
    cache.write_blocks([BlockLoad(*pair) for pair in zip((3, 4), ours.read_blocks([3, 4]), strict=True)])
    model = load_model(model_dir, config, 700, torch.float32, _CPU)
    theirs = TorchDecoder(model, TorchAttention(cache, config.attention), _CPU)
    torch.testing.assert_close(logits_of(ours, after)[0], logits_of(theirs, after)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("length", "value", "is_sound"), [(0, 0.0, True), (1, 0.0, False), (0, float("inf"), False)])
def test_only_a_whole_and_finite_payload_is_sound(length: int, value: float, is_sound: bool) -> None:
    decoder = native(tiny_model("llama3"), "float32")
    numbers = torch.zeros(decoder.block_bytes // 4)
    numbers[5] = value
    assert decoder.is_sound(numbers.view(torch.uint8).numpy().tobytes() + bytes(length)) == is_sound


# ── what is not covered ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "dtype", "device", "words"),
    [
        ("gemma2", "float32", "cpu", "architecture is Gemma2"),
        ("mixtral", "float32", "cpu", "architecture is Mixtral"),
        ("llama2", "float16", "cpu", "dtype is torch.float16"),
        ("llama2", "float32", "meta", "device is meta"),
    ],
)
def test_says_why_not(family: str, dtype: str, device: str, words: str) -> None:
    reason = why_not(load_config(tiny_model(family)), getattr(torch, dtype), torch.device(device))
    assert reason is not None
    assert words in reason


def test_a_head_too_wide_is_not_covered() -> None:
    assert why_not(load_config(shaped(head_dim=258)), torch.float32, _CPU) == "heads of 258 dimensions, 3 to a KV head"
