from __future__ import annotations

import pytest

from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.guided.guide import GuideKind
from weir_executor.openengine.capabilities import (
    Capabilities,
    WrongServerError,
    check_model,
    check_server,
    read_capabilities,
)


def server(**fields: object) -> pb.ServerInfo:
    told: dict[str, object] = {"schema_revision": 1, "minimum_client_revision": 1}
    return pb.ServerInfo(**{**told, **fields})  # type: ignore[arg-type]


def reading(can: pb.GenerationCapabilities | None = None, **model: object) -> Capabilities:
    capacity = pb.DeploymentCapacity(max_loras=3)
    return read_capabilities(server(capacity=capacity), pb.ModelInfo(generation=can, **model))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", [pb.ENGINE_ROLE_UNSPECIFIED, pb.ENGINE_ROLE_AGGREGATED])
def test_a_server_of_our_revision_that_does_all_of_the_work(role: pb.EngineRole.ValueType) -> None:
    check_server(server(engine_role=role))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"schema_revision": 0}, "schema_revision is 0"),
        ({"schema_revision": 2}, "schema_revision is 2"),
        ({"minimum_client_revision": 2}, "clients of revision 2"),
        ({"engine_role": pb.ENGINE_ROLE_PREFILL}, "ENGINE_ROLE_PREFILL"),
        ({"engine_role": pb.ENGINE_ROLE_DECODE}, "ENGINE_ROLE_DECODE"),
    ],
)
def test_another_contract_or_role_is_refused_by_what_it_is(told: dict[str, object], words: str) -> None:
    with pytest.raises(WrongServerError, match=words):
        check_server(server(**told))


@pytest.mark.parametrize(
    ("who", "model"),
    [
        ({"supported_models": ["a", "b"]}, {}),
        ({}, {"model_id": "b"}),
        ({}, {"served_model_name": "b"}),
        ({}, {"served_model_aliases": ["b"]}),
    ],
)
def test_a_model_is_served_by_any_of_its_names(who: dict[str, object], model: dict[str, object]) -> None:
    check_model(server(**who), pb.ModelInfo(**model), "b")  # type: ignore[arg-type]


def test_an_answer_to_a_name_proves_nothing() -> None:
    with pytest.raises(WrongServerError, match="does not serve 'b', but a, c"):
        check_model(server(supported_models=["c"]), pb.ModelInfo(model_id="a"), "b")
    with pytest.raises(WrongServerError, match="but none"):
        check_model(server(), pb.ModelInfo(), "b")


def test_a_server_that_takes_texts_only_is_refused() -> None:
    model = pb.ModelInfo(model_id="a", supports_token_ids_input=False)
    with pytest.raises(WrongServerError, match="token ids"):
        check_model(server(), model, "a")


def test_what_is_not_said_is_not_taken_for_a_yes() -> None:
    can = read_capabilities(server(), pb.ModelInfo())
    assert (can.block_size, can.num_blocks, can.max_running, can.max_context, can.max_output) == (None,) * 5
    assert (can.logprobs, can.max_top_logprobs, can.guides, can.max_loras) == (False, 0, frozenset(), 0)
    assert (can.priority, can.cache_salt, can.cache_bypass, can.stop_in_output) == (False,) * 4


def test_zero_of_a_capacity_stands_for_not_knowing() -> None:
    capacity = pb.DeploymentCapacity(kv_block_size=0, total_kv_blocks=0)
    can = read_capabilities(server(capacity=capacity), pb.ModelInfo(max_context_length=0))
    assert (can.block_size, can.num_blocks, can.max_context) == (None, None, None)


@pytest.mark.parametrize(
    ("modes", "most", "found"),
    [
        ([pb.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N], 5, 5),
        ([pb.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N], 500, 20),
        ([pb.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N], None, 20),
        ([pb.CANDIDATE_TOKEN_SELECTION_MODE_ALL], 5, 0),
        ([], None, 0),
    ],
)
def test_how_many_candidates(
    modes: list[pb.CandidateTokenSelectionMode.ValueType], most: int | None, found: int
) -> None:
    told = pb.LogprobCapabilities(supported=True, candidate_selection_modes=modes, max_top_n=most)
    can = reading(pb.GenerationCapabilities(output_logprobs=told))
    assert (can.logprobs, can.max_top_logprobs) == (True, found)


def test_guides_are_those_of_its_modes() -> None:
    modes = [pb.GUIDED_DECODING_MODE_JSON_SCHEMA, pb.GUIDED_DECODING_MODE_EBNF_GRAMMAR, 77]
    for supported, found in (
        (True, {GuideKind.JSON_SCHEMA, GuideKind.JSON_OBJECT, GuideKind.EBNF, GuideKind.CHOICE}),
        (False, set()),
    ):
        told = pb.GuidedDecodingCapabilities(supported=supported, modes=modes)  # type: ignore[arg-type]
        assert reading(pb.GenerationCapabilities(guided_decoding=told)).guides == found


def test_adapters_need_a_salt_to_keep_their_blocks_apart() -> None:
    salted = pb.GenerationCapabilities(supports_cache_salt=True)
    assert reading(salted, supports_lora=True).max_loras == 3
    assert reading(salted).max_loras == 0
    assert reading(supports_lora=True).max_loras == 0


def test_what_requests_were_told_must_stay_so() -> None:
    can = reading(pb.GenerationCapabilities(supports_cache_salt=True), supports_lora=True)
    assert not can.differs(can)
    assert can.differs(reading(supports_lora=True)) == "cache_salt"
