"""What the user reads."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from unit.client.test_client import script
from weir.inference.v1.embedding_pb2 import Embedding
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import Usage
from weir.router.v1.router_pb2 import ChatResponse, Model, ServedAlias
from weir_chassis.errors import InvalidArgument, NoWorker
from weir_client import printing
from weir_client.answer import Answer
from weir_client.printing import Stopwatch, error_line, stream_json, stream_text, timing_line


async def scripted() -> AsyncIterator[ChatResponse]:
    for event in script():
        yield event


async def test_text_goes_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    answer = await stream_text(scripted())
    printed = capsys.readouterr()
    assert printed.out == "hey\nx\n"
    assert "--- output 1" in printed.err
    assert "3 prompt (0 cached) + 4 tokens" in printed.err
    assert answer.text == "hey"


async def test_json_is_one_event_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    answer = await stream_json(scripted())
    assert answer.text == "hey", "a conversation goes on from it"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(script())
    assert '"first_token_index": 2' in lines[3]


@pytest.mark.parametrize(
    ("watch", "expected"),
    [
        (
            Stopwatch(started=1.0, first_token=1.05, ended=3.05),
            "3 prompt (2 cached) + 101 tokens · TTFT 50 ms · 50 tokens/s",
        ),
        (Stopwatch(started=1.0, first_token=None, ended=2.0), "3 prompt (2 cached) + 101 tokens"),
    ],
)
def test_the_rate_counts_from_the_first_token_on(watch: Stopwatch, expected: str) -> None:
    answer = Answer(usage=Usage(prompt_tokens=3, cached_prompt_tokens=2, completion_tokens=101))
    assert timing_line(answer, watch) == expected


def test_drafts_are_told_when_there_were_any() -> None:
    answer = Answer(usage=Usage(prompt_tokens=3, completion_tokens=10, draft_tokens=8, accepted_draft_tokens=6))
    watch = Stopwatch(started=1.0, first_token=None, ended=2.0)
    assert timing_line(answer, watch) == "3 prompt (0 cached) + 10 tokens · 6 of 8 drafts accepted"


def test_an_error_says_what_to_do_next() -> None:
    assert error_line(NoWorker("nobody is there")).splitlines() == [
        "NO_WORKER: nobody is there",
        "  see which services are healthy with 'weir status'",
    ]
    assert error_line(InvalidArgument("n", "at most 16")) == "INVALID_ARGUMENT: n: at most 16"


def test_a_model_without_template_says_so() -> None:
    version = ModelVersion(model="m", revision="abc")
    line = printing.model_line(Model(model_version=version, max_model_len=64, workers=2, healthy_workers=1))
    assert line == "m  revision abc  context 64  1/2 workers healthy, no chat template"


def test_an_alias_says_what_it_comes_to() -> None:
    alias = ServedAlias(name="chat", models=["m@r1", "m@r2"])
    assert printing.alias_line(alias) == "chat  alias of m@r1, m@r2"
    assert printing.model_json(alias) == '{"name": "chat", "models": ["m@r1", "m@r2"]}'


def test_an_embedding_is_one_line_of_json() -> None:
    line = printing.embedding_json("wörld\n", Embedding(values=[0.5, -2.0]))
    assert line == '{"text": "wörld\\n", "embedding": [0.5, -2.0]}'


def test_the_timing_line_says_from_which_tier_a_prefix_came() -> None:
    answer = Answer(usage=Usage(prompt_tokens=90, cached_prompt_tokens=80, completion_tokens=1))
    answer.receipt.store_cached_tokens_by_tier.update(ram=48, disk=16)
    assert (
        timing_line(answer, Stopwatch(started=1.0, first_token=None, ended=None))
        == "90 prompt (80 cached, 16 from disk, 48 from ram) + 1 tokens"
    )
