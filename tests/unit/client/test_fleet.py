"""`weir fleet` against a router's door that plays a script."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from weir.fleet.v1.instance_pb2 import INSTANCE_KIND_EXECUTOR, INSTANCE_KIND_TOKENIZER, Instance
from weir.inference.v1.model_pb2 import ModelVersion
from weir.router.v1 import fleet_pb2 as pb
from weir_chassis.errors import NoWorker, WeirError
from weir_client import fleet
from weir_client.cli import main


def seen(*problems: str) -> pb.GetFleetResponse:
    executor = pb.Worker(
        instance=Instance(
            kind=INSTANCE_KIND_EXECUTOR,
            address="10.0.0.1:7001",
            region="eu-west",
            model_versions=[ModelVersion(model="demo", revision="0123456789")],
        ),
        state=pb.WORKER_STATE_SERVING,
        source="announced",
        ramp=0.4,
        routed_requests=3,
        routed_tokens=1200,
        load=pb.LoadReport(
            running_sequences=5, waiting_requests=1, tokens_per_second=99.6, free_blocks=7, total_blocks=9
        ),
    )
    executor.since.FromSeconds(125)
    tokenizer = pb.Worker(instance=Instance(kind=INSTANCE_KIND_TOKENIZER, address="t:1"), state=pb.WORKER_STATE_DOWN)
    alias = pb.Alias(name="chat", targets=[pb.AliasTarget(model="demo", weight_now=0.9), pb.AliasTarget(model="b")])
    return pb.GetFleetResponse(workers=[executor, tokenizer], aliases=[alias], problems=problems)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[pb.GetFleetResponse | WeirError]:
    """What the router will say, in turn; Ctrl-C comes after the last."""
    said: list[pb.GetFleetResponse | WeirError] = []

    async def ask(_: Any) -> pb.GetFleetResponse:
        if not said:
            raise KeyboardInterrupt
        answer = said.pop(0)
        if isinstance(answer, WeirError):
            raise answer
        return answer

    @asynccontextmanager
    async def no_channel(_: str) -> Any:
        yield None

    monkeypatch.setattr(fleet, "_ask", ask)
    monkeypatch.setattr(fleet, "open_channel", no_channel)
    return said


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fleet", *arguments])


def test_a_worker_is_a_line(answers: list[pb.GetFleetResponse | WeirError]) -> None:
    answers.append(seen())
    said = run()
    assert said.exit_code == 0
    heading, executor, tokenizer, alias = click.unstyle(said.output).splitlines()
    assert heading.split()[:3] == ["kind", "address", "state"]
    assert executor.split() == [
        *("executor", "10.0.0.1:7001", "serving", "announced", "eu-west", "demo@01234567"),
        *("2m", "40%", "3/1200", "5", "1", "100", "7/9"),
    ]
    assert tokenizer.split()[:6] == ["tokenizer", "t:1", "down", "left", "-", "-"]
    assert alias == "alias chat: demo 0.9, b 0"


def test_what_is_missing_is_told_and_ends_it_with_1(answers: list[pb.GetFleetResponse | WeirError]) -> None:
    answers.append(seen("no tokenizer is healthy: 1 are known"))
    said = run()
    assert said.exit_code == 1
    assert "! no tokenizer is healthy" in said.output


def test_json_is_one_line(answers: list[pb.GetFleetResponse | WeirError]) -> None:
    answers.append(seen())
    (line,) = run("--json").output.splitlines()
    assert json.loads(line)["workers"][0]["instance"]["region"] == "eu-west"


def test_watching_goes_on_while_the_router_is_away(answers: list[pb.GetFleetResponse | WeirError]) -> None:
    answers += [seen(), NoWorker("the router is away"), seen()]
    said = run("--watch", "--every", "0.1")
    assert said.exit_code == 130
    assert said.output.count("10.0.0.1:7001") == 2
    assert "the router is away" in said.output
