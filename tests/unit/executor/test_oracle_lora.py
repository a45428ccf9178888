"""Adapters in the batch give what `transformers` gives with the adapter merged into the weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers

from adapters_fixture import base_of, edit_adapter, merged_model, save_adapter, tensor_name
from contract.engine_contract import Listener, hashes, is_idle, pooled, prompt, request
from unit.executor.oracle import RUNS, reference_greedy
from weir.kvstore.v1.block_hash import HashScope, block_hashes, scope_root
from weir_chassis.errors import AlreadyExists, Cancelled, Internal, InvalidArgument, NotFound, Unsupported
from weir_executor.adapters.files import read_config
from weir_executor.engine import AdapterInfo
from weir_executor.paged.engine import PagedEngine, PagedEngineConfig, load_engine
from weir_executor.paged.model.config import ModelConfigError
from weir_executor.request import GenerationRequest, PoolingKind, SpeculationMode

_FAMILIES = ("llama3", "mistral", "qwen2", "qwen3", "gemma2", "phi3")
_PHI3_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_MAX_TOKENS = 12
# Adapters of every kind that is understood: of all projections, of few, of a large rank, rank-stabilised.
_KINDS: dict[str, dict[str, Any]] = {
    "all": {"seed": 1},
    "attention": {"seed": 2, "targets": ("q_proj", "v_proj"), "strength": 0.5},
    "stabilised": {"seed": 3, "rank": 9, "use_rslora": True, "lora_alpha": 2.5, "targets": ("o_proj", "up_proj")},
}
_PHI3_KINDS: dict[str, dict[str, Any]] = {
    "all": {"seed": 1, "targets": _PHI3_TARGETS},
    "attention": {"seed": 2, "targets": ("qkv_proj",), "strength": 0.5},
    "stabilised": {**_KINDS["stabilised"], "targets": ("o_proj", "down_proj")},
}


@cache
def adapter(family: str, kind: str) -> Path:
    kinds = _PHI3_KINDS if family == "phi3" else _KINDS
    return save_adapter(Path(mkdtemp(prefix="weir-lora-")) / kind, base_of(family), **kinds[kind])


@cache
def merged(family: str, kind: str) -> Any:
    directory = merged_model(Path(mkdtemp(prefix="weir-merged-")) / kind, base_of(family), adapter(family, kind))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@cache
def merged_greedy(family: str, kind: str, token_ids: tuple[int, ...]) -> list[int]:
    tokens = list(token_ids)
    with torch.inference_mode():
        for _ in range(_MAX_TOKENS):
            tokens.append(int(merged(family, kind)(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(token_ids) :]


def wanted(family: str, generation: GenerationRequest) -> list[int]:
    token_ids = list(generation.token_ids)
    if not generation.adapter:
        return reference_greedy(family, token_ids, generation.max_tokens)
    return merged_greedy(family, generation.adapter, tuple(token_ids))[: generation.max_tokens]


def load(engine: PagedEngine, name: str, directory: Path) -> AdapterInfo:
    return engine.load_adapter(name, directory, read_config(directory, 64), lambda _, __: None)


@contextmanager
def running(family: str, *kinds: str, **options: Any) -> Iterator[tuple[PagedEngine, Listener]]:
    defaults: dict[str, Any] = {"num_blocks": 64, "num_threads": 1, "check_integrity": True, "max_adapters": 8}
    engine, heard = load_engine(PagedEngineConfig(base_of(family), **{**defaults, **options})), Listener()
    engine.start(heard)
    try:
        for kind in kinds:
            load(engine, kind, adapter(family, kind))
        yield engine, heard
        assert not heard.wrongs, heard.wrongs
    finally:
        engine.close()


def run(engine: PagedEngine, heard: Listener, requests: list[GenerationRequest]) -> dict[int, list[int]]:
    for generation in requests:
        engine.submit(generation)
    for end in heard.wait_for_ends(*(generation.key for generation in requests)):
        assert end.error is None, end.error
    return {generation.key: heard.tokens[generation.key, 0] for generation in requests}


def mixed(lengths: tuple[int, ...] = (1, 17, 40, 60)) -> list[GenerationRequest]:
    """Each prompt once with each adapter and once with none, taking turns."""
    kinds = ("", *_KINDS)
    asked = [(kind, length) for length in lengths for kind in kinds]
    return [request(key, prompt(n, start=n), _MAX_TOKENS, adapter=kind) for key, (kind, n) in enumerate(asked)]


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("family", "kernels"), [run for run in RUNS if run[0] in _FAMILIES])
def test_several_adapters_and_none_in_one_batch_of_chunks_and_decodes(family: str, kernels: str) -> None:
    with running(family, *_KINDS, max_batched_tokens=48, max_num_seqs=16, kernels=kernels) as (engine, heard):
        tokens = run(engine, heard, mixed())
    assert tokens == {generation.key: wanted(family, generation) for generation in mixed()}
    assert len({tuple(tokens[key]) for key in range(4)}) == 4, "each adapter says something else"


def test_under_preemption_and_resumed() -> None:
    generations = mixed((3, 6))
    expected = {generation.key: wanted("llama3", generation) for generation in generations}
    with running("llama3", *_KINDS, block_size=4, num_blocks=16, max_num_seqs=8) as (engine, heard):
        assert run(engine, heard, generations) == expected
        assert engine.load().preemptions > 0
        resumed = replace(generations[1], key=99, resumed={0: expected[1][:5]})
        assert run(engine, heard, [resumed]) == {99: expected[1][5:]}


def test_drafts_are_checked_by_the_adapter() -> None:
    """Guesses out of a prompt that repeats itself, kept only where the adapter says the same."""
    repeating = prompt(12) * 3
    generations = [
        request(key, repeating, _MAX_TOKENS, adapter=kind, speculation=SpeculationMode.NGRAM)
        for key, kind in enumerate(("", *_KINDS))
    ]
    with running("llama3", *_KINDS) as (engine, heard):
        tokens = run(engine, heard, generations)
        assert sum(end.draft_tokens for end in heard.ends.values()) > 0
    assert tokens == {generation.key: wanted("llama3", generation) for generation in generations}


@pytest.mark.parametrize("kind", PoolingKind)
def test_vectors_pass_through_adapters_too(kind: PoolingKind) -> None:
    token_ids = prompt(40)
    with running("llama3", "all") as (engine, heard):
        engine.submit(pooled(1, token_ids, kind, adapter="all"))
        engine.submit(pooled(2, token_ids, kind))
        with_adapter, without = heard.wait_for_ends(1, 2)
    with torch.inference_mode():
        hidden = merged("llama3", "all").model(torch.tensor([token_ids])).last_hidden_state[0]
    vector = hidden.mean(dim=0) if kind is PoolingKind.MEAN else hidden[-1]
    assert with_adapter.embedding == pytest.approx((vector / vector.norm()).tolist(), abs=1e-4)
    assert without.embedding != pytest.approx(list(with_adapter.embedding), abs=1e-2)


def test_a_bfloat16_adapter_is_as_near_to_float32_as_the_base_allows() -> None:
    """The first token's log-probability, in which a wrong scale or a wrong matrix would show."""
    exact = merged_greedy("llama3", "all", tuple(prompt(40)))
    with running("llama3", "all", dtype="bfloat16") as (engine, heard):
        (tokens,) = run(engine, heard, [request(1, prompt(40), 4, adapter="all")]).values()
    assert tokens[0] == exact[0]


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shared(key: int, token_ids: list[int], info: AdapterInfo | None, **fields: Any) -> GenerationRequest:
    """With the hashes that an executor asks for: the scope names the adapter by its fingerprint."""
    root = scope_root(HashScope("m", "r", "t", adapter=info.fingerprint if info else ""))
    name = info.name if info else ""
    known = block_hashes(root, token_ids, 16)
    return request(key, token_ids, _MAX_TOKENS, adapter=name, block_hashes=known, cache_scope=root, **fields)


def test_blocks_are_shared_within_an_adapter_and_never_across() -> None:
    token_ids = prompt(50)
    with running("llama3") as (engine, heard):
        first = load(engine, "all", adapter("llama3", "all"))
        second = load(engine, "attention", adapter("llama3", "attention"))
        generations = [shared(key, token_ids, info) for key, info in enumerate((None, first, second))]
        for generation in (
            *generations,
            *(shared(10 + g.key, token_ids, (None, first, second)[g.key]) for g in generations),
        ):
            run(engine, heard, [generation])
            assert heard.tokens[generation.key, 0] == wanted("llama3", generation)
        cached = [heard.ends[key].cached_prompt_tokens for key in (0, 1, 2, 10, 11, 12)]
        assert cached == [0, 0, 0, 48, 48, 48]
        assert is_idle(engine.load())


def test_an_adapter_reloaded_under_its_name_with_other_weights_finds_no_old_blocks(tmp_path: Path) -> None:
    token_ids = prompt(50)
    with running("llama3") as (engine, heard):
        old = load(engine, "name", adapter("llama3", "all"))
        (first,) = run(engine, heard, [shared(1, token_ids, old)]).values()
        engine.unload_adapter("name")
        with pytest.raises(NotFound, match="'name'"):
            engine.submit(shared(2, token_ids, old))
        new = load(engine, "name", save_adapter(tmp_path / "new", base_of("llama3"), seed=77))
        assert new.fingerprint != old.fingerprint
        (second,) = run(engine, heard, [shared(3, token_ids, new)]).values()
        assert heard.ends[3].cached_prompt_tokens == 0
        assert second != first
        engine.unload_adapter("name")
        again = load(engine, "name", adapter("llama3", "all"))
        (third,) = run(engine, heard, [shared(4, token_ids, again)]).values()
        assert (third, heard.ends[4].cached_prompt_tokens) == (first, 48), "the same weights: the blocks are right"


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_Q, _DOWN = "self_attn.q_proj", "mlp.down_proj"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({tensor_name(1, _Q, "A"): torch.zeros(4, 47)}, r"layers\.1\.self_attn\.q_proj\.lora_A.*\(4, 47\).*\(4, 48\)"),
        ({tensor_name(0, _DOWN, "B"): torch.zeros(47, 4)}, r"down_proj\.lora_B.*\(47, 4\).*\(48, 4\)"),
        ({tensor_name(2, _DOWN, "A"): torch.zeros(3, 96)}, r"layers\.2\.mlp\.down_proj\.lora_A.*\(3, 96\)"),
        ({tensor_name(1, _Q, "B"): None}, r"q_proj\.lora_B\.weight' is missing"),
        ({tensor_name(1, _Q, "A"): None, tensor_name(1, _Q, "B"): None}, "no tensor.*q_proj.*target_modules"),
        ({tensor_name(1, _Q, "A"): torch.full((4, 48), torch.nan)}, r"q_proj\.lora_A\.weight' holds .*not finite"),
        ({tensor_name(0, _Q, "B"): torch.full((48, 4), torch.inf)}, r"q_proj\.lora_B\.weight' holds .*not finite"),
        ({tensor_name(0, _Q, "B"): torch.ones(48, 4, dtype=torch.int32)}, r"q_proj\.lora_B.*int32"),
        ({tensor_name(7, _Q, "A"): torch.zeros(4, 48)}, r"layers\.7\.self_attn\.q_proj\.lora_A.*is of no projection"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 48)}, "lm_head.*is of no projection"),
        ({tensor_name(0, _Q, "magnitude_vector"): torch.zeros(48)}, "magnitude_vector.*is of no projection"),
    ],
)
def test_a_wrong_tensor_is_named_and_leaves_nothing_behind(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], words: str
) -> None:
    directory = save_adapter(tmp_path / "damaged", base_of("llama3"))
    edit_adapter(directory, tensors)
    with running("llama3") as (engine, _):
        with pytest.raises(InvalidArgument, match=f"adapter_model.safetensors.*{words}"):
            load(engine, "damaged", directory)
        with pytest.raises(NotFound):
            engine.submit(request(1, prompt(4), adapter="damaged"))


@pytest.mark.parametrize("keep", [0, 4, 100, -1000], ids=["empty", "cut-length", "cut-header", "cut-data"])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    directory = save_adapter(tmp_path / "cut", base_of("llama3"))
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with running("llama3") as (engine, _), pytest.raises(InvalidArgument, match=r"adapter_model\.safetensors"):
        load(engine, "cut", directory)


def test_more_bytes_than_an_adapter_of_this_model_can_have_are_not_read(tmp_path: Path) -> None:
    directory = save_adapter(tmp_path / "large", base_of("llama3"))
    with (directory / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 30)
    with running("llama3") as (engine, _), pytest.raises(InvalidArgument, match="an adapter here has at most"):
        load(engine, "large", directory)


def test_some_layers_are_enough_when_the_configuration_says_so(tmp_path: Path) -> None:
    directory = save_adapter(tmp_path / "part", base_of("llama3"), targets=("q_proj",))
    edit_adapter(directory, {tensor_name(0, _Q, "A"): None, tensor_name(0, _Q, "B"): None}, layers_to_transform=[1, 2])
    with running("llama3") as (engine, heard):
        assert load(engine, "part", directory).rank == 4
        run(engine, heard, [request(1, prompt(20), 4, adapter="part")])


# ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_loading_tells_how_far_it_is_and_ends_when_told_to() -> None:
    directory = adapter("llama3", "all")
    told: list[tuple[int, int]] = []
    with running("llama3") as (engine, _):
        engine.load_adapter("all", directory, read_config(directory, 64), lambda done, of: told.append((done, of)))
        size = (directory / "adapter_model.safetensors").stat().st_size
        assert told[-1] == (size, size)
        with pytest.raises(AlreadyExists):
            load(engine, "all", directory)

        def stop(_: int, __: int) -> None:
            raise Cancelled("nobody wants it")

        with pytest.raises(Cancelled):
            engine.load_adapter("other", directory, read_config(directory, 64), stop)
        with pytest.raises(NotFound):
            engine.submit(request(1, prompt(4), adapter="other"))


def test_loading_beside_running_requests_disturbs_none() -> None:
    with running("llama3", "all") as (engine, heard):
        loaded = threading.Thread(target=lambda: load(engine, "attention", adapter("llama3", "attention")))
        heard.on_step = lambda _: None if loaded.ident else loaded.start()
        generation = request(1, prompt(17, start=17), _MAX_TOKENS, adapter="all")
        assert run(engine, heard, [generation])[1] == wanted("llama3", generation)
        loaded.join()
        generation = request(2, prompt(17, start=17), _MAX_TOKENS, adapter="attention")
        assert run(engine, heard, [generation])[2] == wanted("llama3", generation)


def test_an_adapter_that_overflows_fails_its_own_rows_only(tmp_path: Path) -> None:
    wild = save_adapter(tmp_path / "wild", base_of("llama3"), strength=1e18)
    with running("llama3", "all", max_batched_tokens=32) as (engine, heard):
        load(engine, "wild", wild)
        good = mixed((17, 40))[:2]
        engine.submit(request(50, prompt(60), 4, adapter="wild", block_hashes=hashes(prompt(60), 16), cache_scope=b"w"))
        tokens = run(engine, heard, good)
        engine.submit(request(51, prompt(3), 4, adapter="wild"))
        for end in heard.wait_for_ends(50, 51):
            assert isinstance(end.error, Internal), end
        assert tokens == {generation.key: wanted("llama3", generation) for generation in good}
        assert is_idle(engine.load())


def test_without_room_for_adapters_there_are_none() -> None:
    with running("llama3", max_adapters=0) as (engine, _):
        assert engine.info.max_adapters == 0
        with pytest.raises(Unsupported, match="without room"):
            load(engine, "all", adapter("llama3", "all"))


@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("llama3", {"pipeline_parallel": 2})])
def test_where_adapters_cannot_be_they_are_refused_at_start(family: str, options: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigError, match="max_adapters"):
        load_engine(PagedEngineConfig(base_of(family), num_blocks=8, max_adapters=1, **options))
