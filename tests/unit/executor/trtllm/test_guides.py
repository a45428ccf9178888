"""Guides on the way to TensorRT-LLM: admitted by the xgrammar that it pins, compiled by it again in the fake engine.

There as in the real one, a guide that does not compile, or a token that its guide does not take, is the engine's end.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import jsonschema
import pytest

from contract.engine_contract import prompt, request
from contract.executor_contract import Caller, calling, connect, until_idle
from fakes.trtllm.guided import GuidedDecoder
from fakes.trtllm.llm import LLM, library, never
from fakes.trtllm.params import GuidedDecodingParams
from models_fixture import EOS, VOCAB_SIZE
from unit.executor.guide_tokens import compiled, text_of, token_bytes
from unit.executor.test_kv_transfer import FILES
from unit.executor.trtllm.making import Unchecked, config, model_dir, running
from weir.inference.v1 import guide_pb2
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import Unsupported, WorkerLost, reason_name
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory
from weir_executor.guided.bitmask import has
from weir_executor.guided.guide import Guide, GuideKind, choice_guide
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings
from weir_executor.trtllm.config import llm_arguments
from weir_executor.trtllm.guides import guide_arguments
from weir_executor.trtllm.load import load_engine
from weir_executor.trtllm.probe import probe

_POINT = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "on": {"type": "boolean"}},
        "required": ["x", "on"],
    }
)
_TAG = json.dumps(
    {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["<tool>"],
            "tags": [{"begin": "<tool>", "content": {"type": "regex", "pattern": "[ab]{1,3}"}, "end": "</tool>"}],
        },
    }
)
GUIDES = [
    Guide(GuideKind.JSON_SCHEMA, _POINT),
    Guide(GuideKind.JSON_OBJECT),
    Guide(GuideKind.REGEX, "[a-f]{2,4}-(yes|no)!"),
    Guide(GuideKind.EBNF, 'root ::= term ("+" term)*\nterm ::= [0-9]{1,3} | "(" root ")"'),
    choice_guide(["yes", 'no "quotes"', "é\n\\"]),
    Guide(GuideKind.STRUCTURAL_TAG, _TAG),
]


@asynccontextmanager
async def executor(**fields: Any) -> AsyncIterator[tuple[LLM, Caller]]:
    """The whole executor over the fake engine, and one stream to it. The engine is well at the end."""
    chassis = new_chassis("executor")
    settings = ExecutorSettings(model_dir=model_dir(), model="tiny", **fields)
    engine = load_engine(config(model_dir=model_dir()), library(), end_process=never)
    async with (
        serving(engine, FILES, settings, chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as door,
    ):
        async with calling(connect(door)) as caller:
            yield engine._llm, caller
        await until_idle(connect(door))
        engine.check_health()
    assert_no_leases(chassis.leases)


async def ask(caller: Caller, handle: int, max_tokens: int = 64, stopping: Any = None, **guide: Any) -> None:
    sampling = SamplingParameters(temperature=1, seed=handle, guide=guide_pb2.Guide(**guide))
    await caller.submit(
        handle, max_tokens=max_tokens, sampling=sampling, stopping={"ignore_eos": False, **(stopping or {})}
    )


def test_what_admits_is_what_the_engine_pins() -> None:
    assert version("xgrammar") == "0.1.32"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.kind.value)
def test_the_engine_is_handed_the_grammar_that_was_admitted(guide: Guide) -> None:
    """Two compilers and two ways into the library: along random walks both allow the same text, and the same ends.

    The engine also takes the names of special tokens for text, and those tokens with them.
    """
    theirs = GuidedDecoder(model_dir(), VOCAB_SIZE)
    no_text = {i for i, data in enumerate(token_bytes()) if not data} - {EOS}
    rng = random.Random(guide.text)
    for _ in range(8):
        ours = compiled(guide).start()
        matcher = theirs.create(GuidedDecodingParams(**guide_arguments(guide)))
        for _ in range(40):
            words = ours.allowed([EOS], may_end=True)
            allowed = {i for i in range(VOCAB_SIZE) if has(words, i)}
            assert allowed == (matcher.allowed() or set()) - no_text
            if not allowed - {EOS}:
                break
            token_id = rng.choice(sorted(allowed - {EOS}))
            assert ours.advance(token_id)
            matcher.accept(token_id)


async def test_what_is_drawn_follows_the_guide_to_its_end() -> None:
    options = guide_pb2.Choice(options=["yes", "no"])
    async with executor() as (llm, caller):
        await ask(caller, 1, regex="[a-f]{2,4}-(yes|no)!")
        await ask(caller, 2, choice=options)
        await ask(caller, 3, ebnf='root ::= [0-9]{2} ("," [0-9]{2}){0,2}')
        await ask(caller, 4, json_schema=json.dumps({"enum": [{"a": 1}, [True], "é"]}))
        await caller.until_told(1, 2, 3, 4)
        assert not caller.failed
        assert len(llm.submitted) == 5  # with the one that warms up
        said = {handle: text_of(caller.tokens[handle, 0]) for handle in range(1, 5)}
    assert re.fullmatch("[a-f]{2,4}-(yes|no)!", said[1])
    assert said[2] in ("yes", "no")
    assert re.fullmatch("[0-9]{2}(,[0-9]{2}){0,2}", said[3])
    jsonschema.validate(json.loads(said[4]), {"enum": [{"a": 1}, [True], "é"]})


@pytest.mark.parametrize(
    ("guide", "words", "fields"),
    [
        ({"regex": "[a-z"}, "Unclosed", {}),
        ({"ebnf": "root ::= nothing"}, "not defined", {}),
        ({"json_schema": '{"type": 5}'}, "should be a string", {}),
        ({"structural_tag": "{}"}, "format field", {}),
        ({"ebnf": 'root ::= "x" root'}, "ever ends", {}),
        ({"ebnf": 'root ::= "\\x00"'}, "tokens can spell", {}),
        ({"regex": "(a|b|c){0,500}x"}, "bytes when compiled", {"guide_bytes": 20_000}),
        ({"regex": "((a{1,1000}){1,1000}){1,1000}"}, "s to compile", {"guide_seconds": 1.0}),
        ({"json_schema": json.dumps({"description": "x" * 70_000})}, "65536", {}),
    ],
)
async def test_what_would_end_the_engine_does_not_reach_it(
    guide: dict[str, Any], words: str, fields: dict[str, Any]
) -> None:
    """Malformed, endless, a dead end, too large, too slow, too long: its request fails alone, by field and reason."""
    async with executor(**fields) as (llm, caller):
        await ask(caller, 1, **guide)
        await caller.until_told(1)
        error = caller.failed[1]
        assert reason_name(error.reason) == "INVALID_ARGUMENT"
        assert words in error.message, error.message
        assert f"sampling.guide.{next(iter(guide))}" in error.message
        assert len(llm.submitted) == 1  # the one that warms up
        await ask(caller, 2, regex="(yes|no)!")
        await caller.until_told(2)
        assert text_of(caller.tokens[2, 0]) in ("yes!", "no!")


def test_without_admission_a_bad_guide_is_the_engines_end() -> None:
    """So the fake says no more of the tests above than is so."""
    with running(model_dir=model_dir()) as (engine, _, heard):
        bad = Unchecked(Guide(GuideKind.REGEX, "[a-z"))
        engine.submit(request(1, prompt(5), 4, guide=bad, ignore_eos=False))
        engine.submit(request(2, prompt(5), 400))
        for end in heard.wait_for_ends(1, 2):
            assert isinstance(end.error, WorkerLost)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"resumed": {0: [5]}}, "anew"),
    ],
)
def test_what_the_engine_would_not_follow_is_refused(fields: dict[str, Any], words: str) -> None:
    guide = Unchecked(GUIDES[0])
    with running(model_dir=model_dir()) as (engine, llm, _), pytest.raises(Unsupported, match=words):
        engine.submit(request(1, prompt(5), 8, guide=guide, **{"ignore_eos": False, **fields}))
    assert len(llm.submitted) == 1


def test_an_object_is_an_object_and_not_any_json() -> None:
    theirs = GuidedDecoder(model_dir(), VOCAB_SIZE)
    bracket = 3 + ord("[")
    assert bracket in (theirs.create(GuidedDecodingParams(json_object=True)).allowed() or ())
    handed = GuidedDecodingParams(**guide_arguments(Guide(GuideKind.JSON_OBJECT)))
    assert bracket not in (theirs.create(handed).allowed() or ())


def test_the_engine_has_a_tokenizer_where_it_follows_guides_and_none_elsewhere() -> None:
    """Its ranks assert that they have one: with a backend and without a tokenizer it does not start."""
    with running() as (_, llm, _heard):
        assert not llm._skips_tokenizer
    with running(guided_backend=None) as (_, llm, _heard):
        assert llm._skips_tokenizer
    can = probe(library(), allow_unknown=False)
    with pytest.raises(Exception, match="Executor worker returned error"):
        LLM(**{**llm_arguments(config(), library(), can, 512), "skip_tokenizer_init": True})
