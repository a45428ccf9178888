"""Random weights talk garbage: whatever they say that is valid, the guide made them say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from contract.engine_contract import GREEDY, Listener, prompt, request
from models_fixture import EOS, tiny_model
from unit.executor.guide_tokens import compiled, ids_of, text_of, token_bytes
from weir_chassis.errors import InvalidArgument
from weir_executor.guided.guide import GuideKind, choice_guide
from weir_executor.guided.state import XgrammarGuide
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.request import GenerationRequest, Sampling, SpeculationMode
from weir_executor.step_output import FinishReason, TokenOutput

Outputs = Mapping[tuple[int, int], TokenOutput]
_PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "é"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "main": {"type": "boolean"}},
            "required": ["zip", "main"],
        },
    },
    "required": ["name", "age", "address"],
}
# JSON allows white space without end, and random weights have nothing against it.
_TERSE = dict.fromkeys([*ids_of(" \n\t"), token_bytes().index(b"\n ")], -8.0)
_SUM = 'root ::= term ("+" term)*\nterm ::= [0-9]{1,3} | "(" root ")"'


def run(requests: list[GenerationRequest], **options: Any) -> Listener:
    defaults: dict[str, Any] = {"num_blocks": 128, "num_threads": 1, "check_integrity": True}
    engine, heard = load_engine(PagedEngineConfig(tiny_model("llama3"), **{**defaults, **options})), Listener()
    engine.start(heard)
    try:
        for generation in requests:
            engine.submit(generation)
        heard.wait_for_ends(*(generation.key for generation in requests))
        engine.check_health()
        assert not heard.wrongs, heard.wrongs
        return heard
    finally:
        engine.close()


def guided(key: int, guide: XgrammarGuide, max_tokens: int = 200, **fields: Any) -> GenerationRequest:
    defaults = {"sampling": Sampling(seed=key), "ignore_eos": False, "n": 8}
    return request(key, prompt(9, start=key), max_tokens, guide=guide, **{**defaults, **fields})


def texts(heard: Listener) -> list[str]:
    """What outputs came to; all of them must have ended by themselves."""
    reasons = {output.finish_reason for output in heard.finished.values()}
    assert reasons == {FinishReason.STOP}, reasons
    return [text_of(token_ids) for token_ids in heard.tokens.values()]


def test_json_that_follows_its_schema() -> None:
    guide = compiled(GuideKind.JSON_SCHEMA, json.dumps(_PERSON))
    requests = [guided(key, guide, 450, sampling=Sampling(seed=key, logit_bias=_TERSE)) for key in range(6)]
    found = texts(run(requests, max_num_seqs=32, num_blocks=1000))
    assert len(found) == 48
    for text in found:
        jsonschema.validate(json.loads(text), _PERSON)
    assert len(set(found)) > 30


def test_any_json_object() -> None:
    # A random model ends nothing by itself: made to, objects stay small.
    ending = Sampling(logit_bias={**dict.fromkeys(ids_of('}]"'), 9.0), **dict.fromkeys(ids_of("{["), -9.0), **_TERSE})
    guide = compiled(GuideKind.JSON_OBJECT)
    requests = [guided(key, guide, 400, sampling=replace(ending, seed=key)) for key in range(3)]
    found = [json.loads(text) for text in texts(run(requests, num_blocks=1000, max_num_seqs=24))]
    assert all(isinstance(value, dict) for value in found)
    assert any(found)


def test_a_regular_expression() -> None:
    pattern = r"(\d{3}-)?[a-f]{2,9}@(yes|no)\.[xyé]+"
    guide = compiled(GuideKind.REGEX, pattern)
    ending = {EOS: 4.0}
    found = texts(run([guided(key, guide, sampling=Sampling(seed=key, logit_bias=ending)) for key in range(4)]))
    assert len(found) == 32
    assert all(re.fullmatch(pattern, text) for text in found), found


def test_a_grammar() -> None:
    guide = compiled(GuideKind.EBNF, _SUM)
    ending = {EOS: 6.0, **dict.fromkeys(ids_of(")"), 4.0), **dict.fromkeys(ids_of("("), -2.0)}
    found = texts(run([guided(key, guide, sampling=Sampling(seed=key, logit_bias=ending)) for key in range(4)]))
    assert all(re.fullmatch(r"[0-9()+]+", text) and isinstance(_value(text), int) for text in found), found


def _value(text: str) -> int:
    return int(eval(re.sub(r"\b0+(?=\d)", "", text)))


def test_a_choice() -> None:
    options = ["yes", "yesterday", "no", 'n"\\\n', "été"]
    guide = compiled(choice_guide(options))
    found = texts(run([guided(key, guide, sampling=Sampling(seed=key, temperature=3.0)) for key in range(6)]))
    assert set(found) == set(options)


def test_tags_in_free_text() -> None:
    content = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    tag = {"begin": "<tool>", "content": content, "end": "</tool>"}
    form = {"type": "triggered_tags", "triggers": ["<tool>"], "tags": [tag]}
    guide = compiled(GuideKind.STRUCTURAL_TAG, json.dumps({"type": "structural_tag", "format": form}))
    opens, closes = dict.fromkeys(ids_of("<"), 3.0), {EOS: 5.0}
    begins = {**dict.fromkeys(ids_of("tol"), 8.0), token_bytes().index(b"<tool>"): 12.0}
    sampling = Sampling(logit_bias={**opens, **closes, **begins}, seed=1)
    heard = run([guided(key, guide, 150, sampling=replace(sampling, seed=key)) for key in range(3)], num_blocks=600)
    tools = [part for ids in heard.tokens.values() for part in _tags(ids)]
    assert len(tools) > 10
    for inside in tools:
        assert set(json.loads(inside)) <= {"x"}


def _tags(token_ids: list[int]) -> list[str]:
    data = b"".join(token_bytes()[token_id] for token_id in token_ids)
    return [inside.decode() for inside in re.findall(rb"<tool>(.*?)</tool>", data, re.DOTALL)]


# ── how outputs end ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_output_that_can_only_end_ends_at_once_and_without_a_token_for_it() -> None:
    nothing = compiled(GuideKind.EBNF, 'root ::= ""')
    heard = run([guided(1, compiled(choice_guide(["yes"])), n=1), guided(2, nothing, n=1)])
    assert (text_of(heard.tokens[1, 0]), heard.finished[1, 0].stop_token_id) == ("yes", None)
    assert (heard.tokens[2, 0], heard.finished[2, 0].finish_reason) == ([], FinishReason.STOP)
    assert heard.ends[2].completion_tokens == 0


def test_an_output_may_end_only_where_its_guide_allows_it() -> None:
    eager = Sampling(logit_bias={EOS: 100.0}, seed=1)
    heard = run([guided(1, compiled(GuideKind.REGEX, "a{5,9}"), n=1, sampling=eager)])
    assert heard.tokens[1, 0] == [*ids_of("aaaaa"), EOS]
    assert heard.finished[1, 0].stop_token_id == EOS


def test_min_tokens_holds_where_the_guide_goes_on() -> None:
    eager = Sampling(logit_bias={EOS: 100.0}, seed=1)
    guides = [compiled(GuideKind.REGEX, "a{2,9}"), compiled(GuideKind.REGEX, "a{2,4}")]
    heard = run([guided(key, guide, n=1, sampling=eager, min_tokens=7) for key, guide in enumerate(guides)])
    assert heard.tokens[0, 0] == [*ids_of("a" * 7), EOS]
    assert heard.tokens[1, 0] == ids_of("a" * 4)  # there is nothing that the guide would let it add


def test_whoever_ignores_eos_goes_on_until_the_guide_ends() -> None:
    heard = run([guided(1, compiled(GuideKind.REGEX, "a{2,9}"), n=1, ignore_eos=True)])
    assert text_of(heard.tokens[1, 0]) == "a" * 9
    assert EOS not in heard.tokens[1, 0]


def test_max_tokens_cuts() -> None:
    heard = run([guided(1, compiled(GuideKind.REGEX, "[b-e]{50}"), 20, n=1)])
    assert re.fullmatch("[b-e]{20}", text_of(heard.tokens[1, 0]))
    assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH


def test_a_stop_token_of_the_request_ends_it_where_the_guide_allows_an_end() -> None:
    brace = ids_of("}")[0]
    sampling = Sampling(logit_bias={brace: 100.0, ids_of(" ")[0]: -100.0}, seed=3)
    guide = compiled(GuideKind.REGEX, r"(\{[a-c]\}|,){3,}")
    heard = run([guided(1, guide, n=4, sampling=sampling, stop_token_ids=frozenset({brace}))])
    for text in texts(heard):
        assert re.fullmatch(r"(\{[a-c]\}|,){3,}\}?", text), text


# ── others in the batch ───────────────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_draw_what_they_draw_alone() -> None:
    plain = [
        request(1, prompt(20, start=1), 24),
        request(2, prompt(14, start=2), 24, sampling=Sampling(seed=5, top_logprobs=2), min_tokens=4),
    ]
    alone = run(plain)
    among = run([guided(7, compiled(GuideKind.JSON_SCHEMA, json.dumps(_PERSON)), 60, n=3), *plain])
    for key in (1, 2):
        assert among.tokens[key, 0] == alone.tokens[key, 0]
        assert [p.top_token_ids for p in among.logprobs[key, 0]] == [p.top_token_ids for p in alone.logprobs[key, 0]]


def test_a_dead_end_fails_its_request_alone() -> None:
    """What should come after the second letter is a NUL, which no token is."""
    guide = compiled(GuideKind.EBNF, 'root ::= [d-e] [f-g] "\\x00"')
    heard = run([guided(1, guide, n=2), request(2, prompt(12), 10)])
    assert isinstance(error := heard.ends[1].error, InvalidArgument)
    assert error.field == "sampling.guide.ebnf"
    assert "a dead end after 2 tokens" in error.description
    assert len(heard.tokens[2, 0]) == 10


def test_a_guide_that_holds_up_the_batch_fails_its_request_alone() -> None:
    guide = compiled(GuideKind.EBNF, 'root ::= root root | "a"')
    guide.clock = iter(range(10**6)).__next__
    heard = run([guided(1, guide, n=1, ignore_eos=True), request(2, prompt(12), 10)])
    assert isinstance(heard.ends[1].error, InvalidArgument)
    assert "too long for each token" in str(heard.ends[1].error)
    assert len(heard.tokens[2, 0]) == 10


# ── undisturbed, preempted, resumed ───────────────────────────────────────────────────────────────────────────────────

_OPTIONS = [
    Sampling(seed=1),
    Sampling(0.0),
    Sampling(seed=2, temperature=0.7, top_p=0.9, top_logprobs=2),
    Sampling(seed=3, repetition_penalty=1.2, logit_bias={5: 2.0}),
]


def _varied() -> list[GenerationRequest]:
    guides = [
        compiled(GuideKind.JSON_SCHEMA, json.dumps(_PERSON)),
        compiled(GuideKind.REGEX, "[a-d ]{30,60}"),
        compiled(GuideKind.EBNF, _SUM),
        compiled(GuideKind.JSON_OBJECT),
    ]
    return [
        guided(key, guide, 40, sampling=sampling, n=2)
        for key, (guide, sampling) in enumerate(zip(guides, _OPTIONS, strict=True))
    ]


def test_preempted_and_resumed_draws_are_those_of_undisturbed_ones() -> None:
    undisturbed = run(_varied())
    preempted = run(_varied(), num_blocks=9, max_num_seqs=6)
    assert sum(end.preemptions for end in preempted.ends.values()) > 0
    assert preempted.tokens == undisturbed.tokens
    for cut in (1, 7):
        resumed = run([replace(g, resumed=_cut(undisturbed, g, cut)) for g in _varied()])
        assert {place: [*undisturbed.tokens[place][:cut], *rest] for place, rest in resumed.tokens.items()} == {
            place: undisturbed.tokens[place] for place in resumed.tokens
        }


_ALWAYS = SpeculationOptions(mode=SpeculationMode.NGRAM, max_draft_tokens=5, adaptive=False)


def test_drafts_change_no_token() -> None:
    undisturbed, drafted = run(_varied()), run(_varied(), speculation=_ALWAYS)
    assert drafted.tokens == undisturbed.tokens
    assert {key: output.finish_reason for key, output in drafted.finished.items()} == {
        key: output.finish_reason for key, output in undisturbed.finished.items()
    }
    squeezed = run(_varied(), speculation=_ALWAYS, num_blocks=9, max_num_seqs=6)
    assert sum(end.preemptions for end in squeezed.ends.values()) > 0
    assert squeezed.tokens == undisturbed.tokens


@pytest.mark.parametrize("tail", ["", "(xyz)?", "x"])
def test_drafts_stand_as_far_as_the_guide_goes(tail: str) -> None:
    """What repeats itself is drafted beyond the end; the output ends where it does without."""
    guide = compiled(GuideKind.REGEX, "(pq){13}" + tail)
    plain, drafted = (
        run([guided(1, guide, n=3, sampling=Sampling(seed=4), min_tokens=3)], **options)
        for options in ({}, {"speculation": _ALWAYS})
    )
    assert drafted.tokens == plain.tokens
    assert drafted.ends[1].accepted_draft_tokens > 30
    assert texts(drafted)[0].startswith("pq" * 13)


def _cut(heard: Listener, generation: GenerationRequest, cut: int) -> dict[int, list[int]]:
    return {index: heard.tokens[generation.key, index][:cut] for index in range(generation.n)}


def test_an_output_that_had_ended_ends_again_when_resumed() -> None:
    whole = run([guided(1, compiled(choice_guide(["yes"])), n=1)]).tokens[1, 0]
    heard = run([guided(1, compiled(choice_guide(["yes"])), n=1, resumed={0: whole})])
    assert (heard.tokens[1, 0], heard.finished[1, 0].finish_reason) == ([], FinishReason.STOP)


def test_tokens_that_the_guide_does_not_allow_cannot_be_resumed() -> None:
    with pytest.raises(InvalidArgument, match=r"sampling\.guide\.regex does not allow token 2"):
        run([guided(1, compiled(GuideKind.REGEX, "[ab]{9}"), n=1, resumed={0: ids_of("abc")})])


def test_logprobs_are_of_what_is_allowed() -> None:
    sampling = replace(GREEDY, top_logprobs=4)
    heard = run([guided(1, compiled(choice_guide(["ab", "cd"])), n=1, sampling=sampling)])
    (first, *_) = heard.logprobs[1, 0]
    allowed = {*ids_of("ac"), token_bytes().index(b"ab")}
    finite = {i for i, value in zip(first.top_token_ids, first.top_logprobs, strict=True) if value > float("-inf")}
    assert finite == allowed
