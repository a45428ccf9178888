"""The happy half of the mapping: what a valid `Submit` becomes. The refusals are in the contract's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.kvstore.v1.block_hash import HashScope, block_hashes, join_hashes, scope_root
from weir_chassis.errors import DeadlineExceeded, InvalidArgument, RevisionMismatch, WeirError
from weir_executor.engine import AdapterInfo, EngineInfo
from weir_executor.mapping import Served, seconds_left, to_request
from weir_executor.request import GenerationRequest, Sampling

VERSION = ModelVersion(model="m", revision="r", tokenizer_hash="t")
INFO = EngineInfo(
    engine="fake",
    vocab_size=100,
    max_model_len=64,
    block_size=4,
    num_blocks=64,
    max_num_seqs=8,
    max_n=4,
    max_top_logprobs=5,
    eos_token_ids=frozenset({2}),
    block_bytes=8,
    kv_dtype="uint8",
    kv_layout="fake",
    transfers_blocks=True,
)
SERVED = Served(VERSION, INFO, Sampling())


def never() -> int:
    raise AssertionError("the request brought a seed")


def mapped(served: Served = SERVED, draw_seed: Callable[[], int] = never, **fields: object) -> GenerationRequest:
    whole: dict[str, object] = {
        "model_version": VERSION,
        "token_ids": [5, 6, 7],
        "sampling": SamplingParameters(seed=1),
        **fields,
    }
    return to_request(pb.Submit(**whole), key=9, served=served, draw_seed=draw_seed)  # type: ignore[arg-type]


def test_unset_is_the_contracts_default() -> None:
    request = mapped()
    assert request.sampling == Sampling(seed=1)
    assert (request.key, request.n, request.min_tokens, request.priority) == (9, 1, 0, 0)
    assert request.max_tokens == 64 - 3, "up to the context's end"
    assert request.token_ids == [5, 6, 7]
    assert not request.stop_token_ids
    assert not request.resumed
    assert not request.ignore_eos


def test_the_tenant_is_handed_on() -> None:
    assert mapped(tenant="acme").tenant == "acme"
    assert mapped().tenant == ""
    with pytest.raises(InvalidArgument, match="tenant: longer than 128 bytes"):
        mapped(tenant="é" * 65)


def test_unset_is_the_models_own_default_before_the_contracts() -> None:
    own = Sampling(temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    served = replace(SERVED, default_sampling=own)
    assert mapped(served).sampling == replace(own, seed=1)


def test_what_is_set_is_taken_even_when_it_is_zero() -> None:
    served = replace(SERVED, default_sampling=Sampling(temperature=0.6, top_k=20, min_p=0.1))
    sampling = mapped(served, sampling=SamplingParameters(temperature=0, top_k=0, min_p=0, seed=0)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0.0, 0, 0.0, 0)


def test_an_unset_seed_is_drawn() -> None:
    assert mapped(draw_seed=lambda: 77, sampling=SamplingParameters()).sampling.seed == 77


def test_every_field_arrives() -> None:
    request = mapped(
        sampling=SamplingParameters(
            temperature=0.5,
            top_p=0.25,
            top_k=3,
            min_p=0.125,
            repetition_penalty=2,
            presence_penalty=-1,
            frequency_penalty=1.5,
            logit_bias={5: -100, 6: 100},
            seed=2**64 - 1,
            n=2,
            logprobs=5,
        ),
        stopping=StoppingConditions(max_tokens=10, min_tokens=4, stop_token_ids=[8, 9], ignore_eos=True),
        priority=-100,
        resumed_outputs=[pb.ResumedOutput(output_index=1, token_ids=[4, 4])],
    )
    assert request.sampling == Sampling(0.5, 3, 0.25, 0.125, 2.0, -1.0, 1.5, {5: -100.0, 6: 100.0}, 2**64 - 1, 5)
    assert (request.n, request.max_tokens, request.min_tokens, request.ignore_eos) == (2, 10, 4, True)
    assert request.stop_token_ids == {8, 9}
    assert request.priority == -100
    assert request.resumed == {1: [4, 4]}


def test_hashes_and_their_scope() -> None:
    root = scope_root(HashScope("m", "r", "t", tenant_salt="acme"))
    hashes = block_hashes(root, [5] * 9, 4)
    request = mapped(token_ids=[5] * 9, block_hashes=join_hashes(hashes), tenant_salt="acme")
    assert request.block_hashes == hashes
    assert request.cache_scope == root != mapped().cache_scope


def test_an_adapter_is_in_the_scope_by_its_fingerprint_and_in_the_request_by_its_name() -> None:
    root = scope_root(HashScope("m", "r", "t", adapter="f" * 32))
    sent = pb.Submit(
        model_version=VERSION,
        token_ids=[5] * 9,
        block_hashes=join_hashes(block_hashes(root, [5] * 9, 4)),
        sampling=SamplingParameters(seed=1),
    )
    adapter = AdapterInfo("lora", 8, "f" * 32, 1)
    request = to_request(sent, key=9, served=SERVED, draw_seed=never, adapter=adapter)
    assert (request.adapter, request.cache_scope) == ("lora", root)
    assert mapped().adapter == ""
    with pytest.raises(InvalidArgument, match=r"block_hashes: not of these token_ids .* adapter"):
        to_request(sent, key=9, served=SERVED, draw_seed=never)


@pytest.mark.parametrize(
    ("scope", "token", "block_size"),
    [
        (HashScope("m", "r", "t"), 5, 4),
        (HashScope("m", "r", "t", tenant_salt="other"), 5, 4),
        (HashScope("m", "r2", "t", tenant_salt="acme"), 5, 4),
        (HashScope("m", "r", "t", adapter="lora", tenant_salt="acme"), 5, 4),
        (HashScope("m", "r", "t", tenant_salt="acme"), 6, 4),
        (HashScope("m", "r", "t", tenant_salt="acme"), 5, 3),
    ],
    ids=["no_salt", "another_tenants", "another_revision", "an_adapters", "other_tokens", "another_block_size"],
)
def test_hashes_of_something_else_never_reach_a_cache(scope: HashScope, token: int, block_size: int) -> None:
    hashes = join_hashes(block_hashes(scope_root(scope), [token] * 9, block_size)[:2])
    with pytest.raises(InvalidArgument, match="block_hashes: not of these token_ids"):
        mapped(token_ids=[5] * 9, block_hashes=hashes, tenant_salt="acme")


def test_a_prompt_shorter_than_a_block_has_no_hashes_and_still_a_scope() -> None:
    request = mapped()
    assert request.block_hashes == []
    assert request.cache_scope == scope_root(HashScope("m", "r", "t"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", INFO.max_n + 1), ("logprobs", INFO.max_top_logprobs + 1)],
)
def test_the_engines_own_limits_count_too(field: str, value: int) -> None:
    with pytest.raises(InvalidArgument, match=f"sampling.{field}: {value}"):
        mapped(sampling=SamplingParameters(seed=1, **{field: value}))  # type: ignore[arg-type]


def test_a_mismatch_does_not_echo_without_bound() -> None:
    theirs = ModelVersion(model="m", revision="x" * 10_000, tokenizer_hash="y" * 10_000)
    with pytest.raises(RevisionMismatch) as caught:
        mapped(model_version=theirs)
    assert max(map(len, caught.value.metadata.values())) <= 128


def test_the_whole_context_can_be_used_and_no_more() -> None:
    assert mapped(token_ids=[5] * 63).max_tokens == 1
    assert mapped(stopping=StoppingConditions(max_tokens=61)).max_tokens == 61
    for fields in ({"token_ids": [5] * 64}, {"stopping": StoppingConditions(max_tokens=62)}):
        with pytest.raises(WeirError, match="the limit is 64") as caught:
            mapped(**fields)
        assert caught.value.metadata["limit"] == "64"


@pytest.mark.parametrize(("seconds", "nanos", "left"), [(3, 500_000_000, 3.5), (0, 1, 1e-9), (10**9, 0, 1e9)])
def test_time_left(seconds: int, nanos: int, left: float) -> None:
    submit = pb.Submit()
    assert seconds_left(submit) is None
    submit.time_left.seconds, submit.time_left.nanos = seconds, nanos
    assert seconds_left(submit) == pytest.approx(left)


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 0), (-1, 0), (0, -1)])
def test_no_time_left(seconds: int, nanos: int) -> None:
    submit = pb.Submit()
    submit.time_left.seconds, submit.time_left.nanos = seconds, nanos
    submit.time_left.SetInParent()
    with pytest.raises(DeadlineExceeded):
        seconds_left(submit)
