"""`weir explain` against a router's door that plays a script."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.stream_pb2 import WorkerScore
from weir.router.v1 import fleet_pb2 as pb
from weir_client import explain
from weir_client.cli import main
from weir_client.options import Asked


def said() -> pb.ExplainRouteResponse:
    answer = pb.ExplainRouteResponse(
        model_version=ModelVersion(model="demo", revision="0123456789"),
        model_rule="alias chat, arm canary",
        policy="prefix_aware",
        prompt_tokens=512,
        executor="e:1",
        tokenizer="t:1",
        postprocessor="p:1",
        scores=[
            WorkerScore(worker="e:1", score=0.02, terms={"queue_seconds": 0.01, "cached_tokens": 448}),
            WorkerScore(worker="e:2", score=0.5, terms={"queue_seconds": 0.0}),
        ],
        excluded=[pb.Exclusion(worker="e:3", reason="it is draining")],
        cost_micros=1500,
    )
    answer.ttft.FromMilliseconds(34)
    return answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[pb.ExplainRouteRequest]:
    """What the router was asked."""
    requests: list[pb.ExplainRouteRequest] = []

    async def ask(_: Any, request: pb.ExplainRouteRequest, __: Asked) -> pb.ExplainRouteResponse:
        requests.append(request)
        return said()

    @asynccontextmanager
    async def no_channel(_: str) -> Any:
        yield None

    monkeypatch.setattr(explain, "_ask", ask)
    monkeypatch.setattr(explain, "open_channel", no_channel)
    return requests


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


def test_the_choice_its_scores_and_who_was_left_out_are_shown(asked: list[pb.ExplainRouteRequest]) -> None:
    result = run("what is a weir?", "--session", "me", "--model", "chat")
    assert result.exit_code == 0, result.output
    assert click.unstyle(result.output).splitlines() == [
        "model      demo@01234567 (alias chat, arm canary)",
        "executor   e:1 by prefix_aware",
        "others     tokenizer t:1, postprocess p:1",
        "predicted  512 prompt tokens, first token in 34 ms, at most 0.0015 units",
        "",
        "worker  score  cached_tokens  queue_seconds",
        "e:1      0.02            448           0.01",
        "e:2       0.5              -              0",
        "! e:3: it is draining",
    ]
    (request,) = asked
    assert request.chat.prompt.messages[0].content[0].text == "what is a weir?"
    assert (request.chat.model, request.chat.routing.session) == ("chat", "me")


def test_json_is_one_line_and_raw_is_a_prompt(asked: list[pb.ExplainRouteRequest]) -> None:
    (line,) = run("once upon", "--raw", "--json", "--max-tokens", "5").output.splitlines()
    assert json.loads(line)["executor"] == "e:1"
    (request,) = asked
    assert (request.generate.text, request.generate.stopping.max_tokens) == ("once upon", 5)
