"""What the options of `chat` and `generate` become on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from google.protobuf.duration_pb2 import Duration

from weir.inference.v1.guide_pb2 import Choice, Guide, JsonObject
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.speculation_pb2 import SpeculationMode
from weir_client.options import Asked, sampling_options


def asked(*arguments: str) -> Asked:
    found: list[Asked] = []

    @click.command()
    @sampling_options
    def command(**options: Any) -> None:
        found.append(Asked(**options))

    done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "guide"),
    [
        (["--json-object"], Guide(json_object=JsonObject())),
        (["--json-schema", '{"type": "integer"}'], Guide(json_schema='{"type": "integer"}')),
        (["--regex", "a+"], Guide(regex="a+")),
        (["--regex", ""], Guide(regex="")),  # the router says what is wrong with it
        (["--grammar", 'root ::= "x"'], Guide(ebnf='root ::= "x"')),
        (["--choice", "yes", "--choice", "no"], Guide(choice=Choice(options=["yes", "no"]))),
        (["--structural-tag", "{}"], Guide(structural_tag="{}")),
        (["--json-schema", "x" * 5000], Guide(json_schema="x" * 5000)),
    ],
)
def test_a_guide(arguments: list[str], guide: Guide) -> None:
    assert asked(*arguments).sampling().guide == guide


def test_a_guide_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"enum": ["é"]}', encoding="utf-8")
    assert asked("--json-schema", str(path)).sampling().guide == Guide(json_schema='{"enum": ["é"]}')


def test_what_is_said_of_the_routing() -> None:
    assert asked().routing() == RoutingOptions()
    routing = asked(
        "--session",
        "s",
        "--max-ttft",
        "0.25",
        "--max-cost",
        "0.0000029",
        "--min-quality",
        "0.5",
        "--region",
        "eu",
        "--region",
        "uk",
    ).routing()
    constraints = Constraints(
        max_ttft=Duration(nanos=250_000_000), max_cost_micros=2, min_quality=0.5, regions=["eu", "uk"]
    )
    assert routing == RoutingOptions(session="s", constraints=constraints)


def test_a_cost_of_nothing_is_a_constraint() -> None:
    assert asked("--max-cost", "0").routing().constraints.HasField("max_cost_micros")


def test_no_guide_is_none() -> None:
    sampling = asked("--temperature", "0", "--seed", "3").sampling()
    assert not sampling.HasField("guide")
    assert (sampling.temperature, sampling.seed) == (0, 3)


def test_speculation_is_named_or_left_to_the_executor() -> None:
    mode = asked("--speculation", "draft-model").sampling().speculation.mode
    assert mode == SpeculationMode.SPECULATION_MODE_DRAFT_MODEL
    assert not asked().sampling().HasField("speculation")


def test_a_watermark() -> None:
    assert asked("--watermark").sampling().HasField("watermark")
    assert not asked().sampling().HasField("watermark")


def test_an_answer_follows_one_guide() -> None:
    with pytest.raises(click.UsageError, match="--regex and --choice: an answer follows one guide"):
        asked("--choice", "a", "--regex", "b").sampling()


def test_what_the_wire_cannot_hold_is_named() -> None:
    with pytest.raises(click.BadParameter):
        asked("--top-k", "-1").sampling()
