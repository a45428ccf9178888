"""Weights as whole numbers of eight and four bits: computed as rounded, and how near that is to not rounding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from contract.engine_contract import prompt, request
from models_fixture import FAMILIES, save_model, tiny_model
from unit.executor.native.test_decoder import ISAS, Row, batch, in_torch, logits_of, native
from unit.executor.oracle import run_paged
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError

_DEMO = Path(__file__).parents[4] / "deploy" / "models" / "demo"
_GROUP = 64
_TEXT = (
    "The weir holds the river back in summer and lets it go in spring. Children cross it on flat stones, and old men "
    "sit beside it with a rod and say that the fish were larger when they were young. What is the capital of France? "
    "The capital of France is Paris. Write a short story about a dog who finds a bone and brings it home."
)


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """What the kernels make of a weight: per output and 64 inputs the scale, of eight, that loses least."""
    outputs, inputs = weight.shape
    groups = torch.nn.functional.pad(weight.float(), (0, -inputs % _GROUP)).view(outputs, -1, _GROUP)
    most = 2 ** (bits - 1) - 1
    found, least = groups, torch.full(groups.shape[:2], torch.inf)
    for step in range(1 if bits == 8 else 8):
        scale = groups.abs().amax(dim=-1, keepdim=True) / most * (1 - 0.05 * step)
        tried = (groups / scale).nan_to_num().round().clamp(-most - 1, most) * scale
        error = (tried - groups).square().sum(dim=-1)
        found = torch.where((error < least).unsqueeze(-1), tried, found)
        least = torch.minimum(error, least)
    return found.view(outputs, -1)[:, :inputs].contiguous()


@cache
def _models(bits: int) -> tuple[Path, Path]:
    """A model, and the same with its projections rounded beforehand; widths are no whole groups."""
    shape = {"hidden_size": 72, "intermediate_size": 136, "head_dim": 20, "tie_word_embeddings": False}
    model_dir = save_model({**FAMILIES["llama_yarn"], **shape}, Path(mkdtemp(prefix="weir-whole-")) / "model")
    other = Path(mkdtemp(prefix="weir-whole-"))
    weights = load_file(model_dir / "model.safetensors")
    for name, weight in weights.items():
        if "_proj.weight" in name:
            weights[name] = rounded(weight, bits)
        elif name == "lm_head.weight":
            weights[name] = rounded(weight, 8)
    save_file(weights, other / "model.safetensors")
    (other / "config.json").write_text((model_dir / "config.json").read_text())
    return model_dir, other


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [8, 4])
def test_computed_as_rounded(bits: int, isa: str) -> None:
    model_dir, other = _models(bits)
    steps = [batch([Row(0, 40, [3, 4, 5])]), batch([Row(40, 1, [3, 4, 5]), Row(0, 1, [9]), Row(0, 29, [6, 7])])]
    ours = torch.cat(logits_of(native(model_dir, "float32", isa, weight_bits=bits), *steps))
    theirs = torch.cat(logits_of(in_torch(other, "float32"), *steps))
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize(("bits", "most_divergence", "least_agreement"), [(8, 0.003, 0.95), (4, 0.35, 0.65)])
def test_how_near_the_demo_model_stays(bits: int, most_divergence: float, least_agreement: float) -> None:
    """KL divergence in nats from the weights as they are, averaged over a text; and how often the best token is the
    same. The model is small: its four-bit weights lose more than a large one's would."""
    ids = tuple(Tokenizer.from_file(str(_DEMO / "tokenizer.json")).encode(_TEXT).ids)
    flat = batch([Row(0, len(ids), list(range(10)), ids)])
    exact = logits_of(native(_DEMO, "bfloat16"), flat)[0].log_softmax(dim=-1)
    found = logits_of(native(_DEMO, "bfloat16", weight_bits=bits), flat)[0].log_softmax(dim=-1)
    divergence = (exact.exp() * (exact - found)).sum(dim=-1).mean()
    agreement = (exact.argmax(dim=-1) == found.argmax(dim=-1)).float().mean()
    assert divergence <= most_divergence, (divergence, agreement)
    assert agreement >= least_agreement, (divergence, agreement)


@pytest.mark.parametrize("isa", ISAS)
def test_bit_by_bit_the_same_alone_and_among_others(isa: str) -> None:
    model_dir, blocks = _models(8)[0], [3, 4, 5, 6, 7]
    whole = logits_of(native(model_dir, "bfloat16", isa, threads=1, weight_bits=8), batch([Row(0, 70, blocks)]))[0]
    decoder = native(model_dir, "bfloat16", isa, threads=3, weight_bits=8)
    parts = logits_of(decoder, batch([Row(0, 33, blocks)]), batch([Row(33, 37, blocks), Row(0, 20, [9, 10])]))
    assert torch.equal(torch.cat([parts[0], parts[1][:37]]), whole)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_that_is_no_number_is_not_rounded_away(bits: int, tmp_path: Path) -> None:
    model_dir = save_model(FAMILIES["llama2"], tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.inf
    save_file(weights, model_dir / "model.safetensors")
    decoded = native(model_dir, "float32", weight_bits=bits).decode(batch([Row(0, 20, [3, 4])]))
    assert decoded.sound == [False]


def test_an_engine_says_that_its_blocks_are_of_rounded_weights() -> None:
    layouts = {
        load_engine(PagedEngineConfig(tiny_model("llama3"), num_blocks=8, weights=weights)).info.kv_layout
        for weights in ("dtype", "int8", "int4")
    }
    assert len(layouts) == 3
    tokens, _ = run_paged("llama3", [request(1, prompt(30), 12)], "auto", weights="int8")
    assert len(tokens[1]) == 12


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("gemma2", {}, "weights int8 cannot be had here: the architecture is Gemma2"),
        ("llama3", {"tensor_parallel": 2}, "weights: rounded ones are not supported over several ranks"),
    ],
)
def test_where_they_cannot_be_had_the_engine_says_so(family: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        load_engine(PagedEngineConfig(tiny_model(family), num_blocks=8, weights="int8", **options))  # type: ignore[arg-type]
