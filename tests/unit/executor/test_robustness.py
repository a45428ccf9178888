"""What the world does to the paged engine: damaged files, numbers that are none, work that comes and goes."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.engine_contract import Listener, hashes, is_idle, prompt, request
from models_fixture import VOCAB_SIZE, save_tiny_model, tiny_model
from unit.executor.oracle import reference_greedy, reference_logits, run_paged
from weir_chassis.errors import Internal
from weir_executor.paged.engine import PagedEngine, PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.paged.model.weights import ModelLoadError
from weir_executor.request import StoredPrefix

_POISONED_TOKEN = 310


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model of its own, to be damaged."""
    return Path(shutil.copytree(tiny_model("qwen2"), tmp_path / "model"))


def _load(model_dir: Path, num_blocks: int = 64) -> PagedEngine:
    return load_engine(PagedEngineConfig(model_dir, num_blocks=num_blocks, num_threads=1, check_integrity=True))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keep", [0, 4, 100, -1000], ids=["empty", "cut-length", "cut-header", "cut-data"])
def test_truncated_weights_name_the_file(model_dir: Path, keep: int) -> None:
    path = model_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        _load(model_dir)


def test_corrupt_header_names_the_file(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        _load(model_dir)


def test_missing_weights_name_the_file(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        _load(model_dir)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.k_proj.bias"])
def test_a_missing_tensor_is_named(model_dir: Path, name: str) -> None:
    weights = load_file(model_dir / "model.safetensors")
    del weights[name]
    save_file(weights, model_dir / "model.safetensors")
    with pytest.raises(ModelLoadError, match=name):
        _load(model_dir)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(model_dir: Path) -> None:
    weights = load_file(model_dir / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(48, 95)
    save_file(weights, model_dir / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"down_proj.*\(48, 95\).*\(48, 96\)"):
        _load(model_dir)


def test_a_tensor_of_integers_is_refused(model_dir: Path) -> None:
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(48, dtype=torch.int8)
    save_file(weights, model_dir / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight.*int8"):
        _load(model_dir)


def _shard(model_dir: Path) -> dict[str, str]:
    weights = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    weight_map = {}
    for part, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        file_name = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, model_dir / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_sharded_weights_are_the_same_model(model_dir: Path) -> None:
    _shard(model_dir)
    engine, heard = _load(model_dir), Listener()
    engine.start(heard)
    engine.submit(request(1, prompt(20), 10))
    heard.wait_for_ends(1)
    engine.close()
    assert heard.tokens[1, 0] == reference_greedy("qwen2", prompt(20), 10)


def test_a_shard_that_is_missing_is_named(model_dir: Path) -> None:
    _shard(model_dir)
    (model_dir / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="model-00002-of-00002"):
        _load(model_dir)


def test_a_tensor_that_the_index_forgot_is_named(model_dir: Path) -> None:
    weight_map = _shard(model_dir)
    del weight_map["model.norm.weight"]
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelLoadError, match=r"index\.json.*model\.norm\.weight"):
        _load(model_dir)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', "{}"])
def test_a_damaged_index_is_named(model_dir: Path, text: str) -> None:
    (model_dir / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"index\.json"):
        _load(model_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*known: .*Gemma2ForCausalLM, Gemma3ForCausalLM, "),
        ({"architectures": None}, "none.*known: .*Gemma2ForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type 'spiral'.*known: default, dynamic, linear"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3': 'low_freq_factor' is missing"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes' is not known here; known: awq, "),
        ({"layer_types": ["full_attention"]}, "layer_types does not name 3 layers"),
        ({"layer_types": ["linear_attention"] * 3}, "'linear_attention' is not known here; known: full_attention"),
        ({"hidden_size": "wide"}, "'hidden_size' is 'wide', not a whole number"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0, not a whole number of at least 1"),
        ({"rms_norm_eps": True}, "'rms_norm_eps' is True, not a finite number"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1, neither true nor false"),
        ({"num_key_value_heads": 4}, "6 heads cannot share 4"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(model_dir: Path, changes: dict[str, object], message: str) -> None:
    _edit(model_dir / "config.json", **changes)
    with pytest.raises(ModelConfigError, match=message):
        _load(model_dir)


def test_a_missing_key_of_the_configuration_is_named(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    del config["num_hidden_layers"]
    (model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelConfigError, match=r"config\.json.*num_hidden_layers"):
        _load(model_dir)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_configuration_that_is_no_json_object_is_named(model_dir: Path, text: str) -> None:
    (model_dir / "config.json").write_text(text)
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        _load(model_dir)


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="max_model_len 600"):
        load_engine(PagedEngineConfig(tiny_model("llama2"), num_blocks=64, max_model_len=600))


def test_a_cache_of_less_than_one_block_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="kv_cache_bytes"):
        load_engine(PagedEngineConfig(tiny_model("llama2"), kv_cache_bytes=100))


def test_limits_follow_from_the_memory_given() -> None:
    config = PagedEngineConfig(tiny_model("llama2"), kv_cache_bytes=1_000_000, block_size=8)
    info = load_engine(config).info
    assert info.block_bytes == 3 * 2 * 8 * 6 * 8 * 4
    assert info.num_blocks == 1_000_000 // info.block_bytes
    assert info.max_model_len == min(512, info.num_blocks * 8)
    assert info.eos_token_ids == {2}


# ── numbers that are none ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def poisoned_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which one token's embedding is not a number."""
    model_dir = save_tiny_model("llama2", tmp_path_factory.mktemp("poisoned") / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.embed_tokens.weight"][_POISONED_TOKEN] = torch.nan
    save_file(weights, model_dir / "model.safetensors")
    return model_dir


@pytest.mark.parametrize("place", [0, 20, 39], ids=["first", "middle", "last"])
def test_nan_fails_its_own_request_only(poisoned_dir: Path, place: int) -> None:
    bad = prompt(40)
    bad[place] = _POISONED_TOKEN
    engine, heard = _load(poisoned_dir, num_blocks=12), Listener()
    engine.start(heard)
    engine.submit(request(0, prompt(30, start=5), 30))
    engine.submit(request(1, bad, 30, n=2, block_hashes=hashes(bad, 16)))
    engine.submit(request(2, prompt(30, start=6), 30))
    ends = heard.wait_for_ends(0, 1, 2)
    assert isinstance(ends[1].error, Internal)
    for key, start in ((0, 5), (2, 6)):
        assert ends[key].error is None
        assert heard.tokens[key, 0] == reference_greedy("llama2", prompt(30, start=start), 30)
    # Every block is used again, its rest beyond the tokens included: nothing of the poison is left in them.
    for key in range(3, 9):
        engine.submit(request(key, prompt(33, start=key), 20))
    heard.wait_for_ends(*range(3, 9))
    for key in range(3, 9):
        assert heard.tokens[key, 0] == reference_greedy("llama2", prompt(33, start=key), 20)
    assert engine.cached_prefix_blocks(hashes(bad, 16)) <= place // 16
    engine.close()


def test_a_stored_block_that_is_not_finite_is_a_miss() -> None:
    engine, heard, tokens = _load(tiny_model("llama2")), Listener(), prompt(50)
    engine.start(heard)
    bad = torch.full((engine.info.block_bytes // 4,), torch.nan).numpy().tobytes()
    stored = StoredPrefix(0, [bad, bad])
    engine.submit(request(1, tokens, 8, block_hashes=hashes(tokens, 16), stored_prefix=stored))
    (end,) = heard.wait_for_ends(1)
    engine.close()
    assert (end.error, end.loaded_prompt_tokens) == (None, 0)
    assert heard.tokens[1, 0] == reference_greedy("llama2", tokens, 8)


# ── log-probabilities ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_logprobs_are_those_of_transformers() -> None:
    from weir_executor.request import Sampling

    engine, heard = _load(tiny_model("qwen3")), Listener()
    engine.start(heard)
    engine.submit(request(1, prompt(20), 6, sampling=Sampling(temperature=0.7, seed=3, top_logprobs=4)))
    heard.wait_for_ends(1)
    engine.close()
    tokens = heard.tokens[1, 0]
    wanted = (reference_logits("qwen3", prompt(20) + tokens)[19:-1] / 0.7).log_softmax(dim=-1)
    for place, found in enumerate(heard.logprobs[1, 0]):
        best = wanted[place].topk(4)
        assert found.logprob == pytest.approx(wanted[place, tokens[place]].item(), abs=1e-3)
        assert list(found.top_token_ids) == best.indices.tolist()
        assert list(found.top_logprobs) == pytest.approx(best.values.tolist(), abs=1e-3)


# ── work that comes and goes ──────────────────────────────────────────────────────────────────────────────────────────


def test_random_submits_and_aborts_leave_every_block_free() -> None:
    dice, heard = random.Random(7), Listener()
    engine = load_engine(
        PagedEngineConfig(
            tiny_model("llama3"),
            num_blocks=20,
            max_num_seqs=6,
            max_batched_tokens=64,
            num_threads=1,
            check_integrity=True,
        )
    )
    engine.start(heard)
    submitted: list[int] = []
    for key in range(300):
        if dice.random() < 0.5 or not submitted:
            tokens = prompt(dice.randint(1, 100), start=dice.randint(0, 3), vocab_size=VOCAB_SIZE)
            known = hashes(tokens, 16) if dice.random() < 0.7 else ()
            engine.submit(request(key, tokens, dice.randint(1, 30), n=dice.randint(1, 3), block_hashes=known))
            submitted.append(key)
        else:
            engine.abort(dice.choice(submitted[-20:]), dice.choice((None, 0)))
        time.sleep(dice.random() * 0.004)
    heard.wait_for_ends(*submitted)
    deadline = time.monotonic() + 10
    while not is_idle(engine.load()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert is_idle(engine.load()), engine.load()
    engine.check_health()
    engine.close()
    assert not heard.wrongs, heard.wrongs[:3]
    assert all(end.error is None for end in heard.ends.values())


def test_one_engine_after_another_in_one_process() -> None:
    for _ in range(2):
        tokens, _ends = run_paged("llama2", [request(1, prompt(20), 5)])
        assert tokens[1] == reference_greedy("llama2", prompt(20), 5)
