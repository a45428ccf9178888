from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.engine_contract import ROOT, SEEDED, hashes, prompt, request
from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import Unsupported
from weir_executor.foreign.salts import shared_salt
from weir_executor.guided.guide import ANY_OBJECT, Guide, GuideKind
from weir_executor.openengine.capabilities import Capabilities
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.request import check_supported, metadata, to_message
from weir_executor.request import GenerationRequest, Sampling, Watermark

CONFIG = OpenEngineConfig(
    address="127.0.0.1:1",
    model="theirs",
    vocab_size=320,
    eos_token_ids=frozenset({2}),
    max_model_len=512,
    plain_scope=ROOT,
    tls_ca_file=Path("unused"),
)
CAN = Capabilities(
    engine="double 1",
    instance_id="one",
    block_size=16,
    num_blocks=64,
    max_running=4,
    max_batched_tokens=64,
    max_context=512,
    max_output=None,
    logprobs=True,
    max_top_logprobs=20,
    guides=frozenset(GuideKind),
    priority=True,
    cache_salt=True,
    cache_bypass=True,
    stop_in_output=True,
    max_loras=2,
)


class Uncompiled:
    """A guide for an engine with a compiler of its own."""

    def __init__(self, kind: GuideKind, text: str = "text") -> None:
        self.guide = Guide(kind, text)

    def start(self) -> Any:
        raise AssertionError("the server follows it by itself")


def message(generation: GenerationRequest, index: int = 0, can: Capabilities = CAN) -> pb.GenerateRequest:
    return to_message(generation, index, "id-1", can, CONFIG, private_salt="private-id-1")


def test_everything_that_the_server_would_choose_is_said() -> None:
    sampling = Sampling(0.7, 5, 0.9, 0.1, 1.2, 0.5, 0.25, seed=9)
    told = message(request(1, prompt(4), 8, sampling=sampling, min_tokens=3, ignore_eos=False))
    assert (told.request_id, told.model, list(told.token_ids.ids)) == ("id-1", "theirs", prompt(4))
    asked = told.sampling
    assert {field.name for field, _ in asked.ListFields()} == {field.name for field in asked.DESCRIPTOR.fields}
    assert (asked.temperature, asked.top_k, asked.top_p, asked.min_p) == (0.7, 5, 0.9, 0.1)
    assert (asked.repetition_penalty, asked.presence_penalty, asked.frequency_penalty) == (1.2, 0.5, 0.25)
    assert (asked.seed, asked.num_sequences) == (9, 1)
    assert (told.stopping.max_tokens, told.stopping.min_tokens) == (8, 3)
    assert told.stopping.HasField("ignore_eos")
    assert not told.stopping.ignore_eos
    assert told.stopping.include_stop_in_output


def test_greedy_is_one_candidate_whatever_else_was_asked() -> None:
    asked = message(request(1, prompt(4), sampling=Sampling(0.0, 0, 0.5, 0.5))).sampling
    assert (asked.temperature, asked.top_k, asked.top_p, asked.min_p) == (0.0, 1, 1.0, 0.0)


def test_as_many_candidates_as_there_are_tokens_is_all_of_them() -> None:
    assert message(request(1, prompt(4), sampling=Sampling(top_k=1 << 40))).sampling.top_k == 0


def test_an_output_that_is_resumed_goes_on_after_what_it_emitted() -> None:
    generation = request(1, prompt(4), 8, n=2, resumed={1: [7, 8, 9]}, sampling=SEEDED, min_tokens=2)
    first, second = message(generation, 0), message(generation, 1)
    assert (list(second.token_ids.ids), second.stopping.max_tokens) == ([*prompt(4), 7, 8, 9], 5)
    assert (first.stopping.min_tokens, second.stopping.HasField("min_tokens")) == (2, False)
    assert first.sampling.seed != second.sampling.seed


def test_stop_tokens_are_conditions_and_the_servers_own_limit_holds() -> None:
    told = message(request(1, prompt(4), 8, stop_token_ids=frozenset({9, 5})), can=replace(CAN, max_output=6))
    assert [each.stop_token_id for each in told.stopping.conditions] == [5, 9]
    assert told.stopping.max_tokens == 6


def test_a_server_that_has_no_such_switch_is_not_asked_for_stops_in_its_output() -> None:
    told = message(request(1, prompt(4)), can=replace(CAN, stop_in_output=False))
    assert not told.stopping.HasField("include_stop_in_output")


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_are_asked_for_with_their_candidates(top: int) -> None:
    told = message(request(1, prompt(4), sampling=Sampling(top_logprobs=top))).response
    assert (told.return_output_logprobs, told.output_candidates.top_n) == (True, top)
    assert not message(request(1, prompt(4))).HasField("response")


@pytest.mark.parametrize(
    ("kind", "field", "text"),
    [
        (GuideKind.JSON_SCHEMA, "json_schema", "text"),
        (GuideKind.JSON_OBJECT, "json_schema", ANY_OBJECT),
        (GuideKind.REGEX, "regex", "text"),
        (GuideKind.EBNF, "ebnf_grammar", "text"),
        (GuideKind.CHOICE, "ebnf_grammar", "text"),
        (GuideKind.STRUCTURAL_TAG, "structural_tag", "text"),
    ],
)
def test_guides_go_as_what_they_are(kind: GuideKind, field: str, text: str) -> None:
    told = message(request(1, prompt(4), guide=Uncompiled(kind))).guided
    assert (told.WhichOneof("guide"), getattr(told, field)) == (field, text)


def test_a_scope_is_a_salt_and_what_shares_nothing_has_one_of_its_own() -> None:
    shared = request(1, prompt(40), block_hashes=hashes(prompt(40), 16), cache_scope=ROOT)
    alone = request(2, prompt(40))
    assert message(shared).kv.cache_salt == shared_salt(ROOT)
    assert message(alone).kv.cache_salt == "private-id-1"


def test_without_salts_what_shares_nothing_bypasses_the_cache_where_it_can() -> None:
    shared = request(1, prompt(40), block_hashes=hashes(prompt(40), 16), cache_scope=ROOT)
    no_salt = replace(CAN, cache_salt=False)
    assert message(request(2, prompt(40)), can=no_salt).kv.bypass_prefix_cache
    assert not message(shared, can=no_salt).HasField("kv")
    assert not message(request(2, prompt(40)), can=replace(no_salt, cache_bypass=False)).HasField("kv")


def test_an_adapter_goes_by_its_name_and_a_priority_to_who_knows_it() -> None:
    generation = request(1, prompt(4), adapter="law", priority=3)
    assert message(generation).lora_name == "law"
    assert metadata(generation, CAN) == (("openengine-priority", "3"),)
    assert metadata(generation, replace(CAN, priority=False)) == ()
    assert metadata(request(1, prompt(4)), CAN) == ()


@pytest.mark.parametrize(
    ("fields", "can", "words"),
    [
        ({"sampling": Sampling(watermark=Watermark(b"k" * 16, 1.0))}, CAN, "sampling.watermark"),
        ({"sampling": Sampling(logit_bias={5: 1.0})}, CAN, "sampling.logit_bias"),
        ({"sampling": Sampling(top_logprobs=0)}, replace(CAN, logprobs=False), "sampling.logprobs"),
        ({"min_tokens": 2, "stop_token_ids": frozenset({5})}, CAN, "stopping.min_tokens"),
        ({"guide": Uncompiled(GuideKind.REGEX)}, replace(CAN, guides=frozenset()), "sampling.guide.regex"),
        ({"guide": Uncompiled(GuideKind.REGEX), "resumed": {0: [5]}}, CAN, "resumed"),
        ({"guide": Uncompiled(GuideKind.REGEX), "min_tokens": 2}, CAN, "stopping.min_tokens"),
        ({"guide": Uncompiled(GuideKind.REGEX)}, CAN, "stopping.ignore_eos"),
        ({"cache_scope": b"another tenant's"}, replace(CAN, cache_salt=False), "tenant_salt"),
    ],
)
def test_what_has_no_word_there_is_refused_by_its_field(fields: dict[str, Any], can: Capabilities, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        check_supported(request(1, prompt(4), **fields), can, CONFIG)


def test_all_else_is_taken() -> None:
    check_supported(request(1, prompt(4), cache_scope=ROOT, min_tokens=2), replace(CAN, cache_salt=False), CONFIG)
    check_supported(request(1, prompt(4), guide=Uncompiled(GuideKind.CHOICE), ignore_eos=False), CAN, CONFIG)
