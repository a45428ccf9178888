"""Command-line options that `chat` and `generate` share, and the messages they become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import click

from weir.inference.v1.guide_pb2 import Choice, Guide, JsonObject
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import SpeculationMode

_Command = TypeVar("_Command", bound=Callable[..., Any])

ROUTER = click.option(
    "--router",
    envvar="WEIR_ROUTER",
    metavar="HOST:PORT",
    help="Router to call. Default: that of the running 'weir up'.",
)
MODEL = click.option("--model", "-m", default="", help="Model to ask. Default: the only one there is.")
TIMEOUT = click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for the whole answer.")
TENANT = click.option("--tenant", envvar="WEIR_TENANT", default="", help="Whose share and quotas apply.")
ADAPTER = click.option("--adapter", default="", help="Adapter to answer through. Default: none.")
_SPECULATION_MODES: Mapping[str, SpeculationMode.ValueType] = {
    "off": SpeculationMode.SPECULATION_MODE_OFF,
    "ngram": SpeculationMode.SPECULATION_MODE_NGRAM,
    "draft-model": SpeculationMode.SPECULATION_MODE_DRAFT_MODEL,
}
_SAMPLING = [
    MODEL,
    TENANT,
    ADAPTER,
    click.option("--session", default="", help="Its requests keep their arm, and their worker where they can."),
    click.option("--max-ttft", type=float, metavar="SECONDS", help="Refuse when the first token would come later."),
    click.option("--max-cost", type=float, metavar="UNITS", help="Refuse what may cost more, as in 0.002."),
    click.option("--min-quality", type=float, metavar="0..1", help="Ask only models that are rated so high."),
    click.option("--region", multiple=True, help="Go nowhere else. May be given several times."),
    click.option("--max-tokens", type=int, help="Tokens to generate at most."),
    click.option("--temperature", "-t", type=float, help="0 is greedy."),
    click.option("--top-p", type=float, help="Keep the most likely tokens up to this total probability."),
    click.option("--top-k", type=int, help="Keep the k most likely tokens."),
    click.option("--seed", type=int, help="The same seed draws the same answer."),
    click.option("-n", "n", type=int, help="Outputs to draw."),
    click.option("--stop", multiple=True, help="End before this text. May be given several times."),
    click.option(
        "--speculation",
        type=click.Choice(list(_SPECULATION_MODES)),
        help="Guess tokens ahead: the answer is the same, perhaps sooner. Default: the executor's.",
    ),
    click.option("--json-object", is_flag=True, help="The answer is a JSON object."),
    click.option("--json-schema", metavar="FILE|JSON", help="The answer is JSON that follows this schema."),
    click.option("--regex", help="The whole answer matches this regular expression."),
    click.option("--grammar", metavar="FILE|GBNF", help="The answer follows this grammar, from its rule 'root'."),
    click.option("--choice", multiple=True, help="The answer is one of these texts. May be given several times."),
    click.option("--structural-tag", metavar="FILE|JSON", help="Free text with tags that follow schemas."),
    click.option("--watermark", is_flag=True, help="Mark the answer, so that 'weir detect' knows it again."),
    click.option(
        "--retain",
        type=float,
        metavar="SECONDS",
        help="Let the answer outlive a lost connection for so long: it is resumed by itself, or by 'weir resume'.",
    ),
    TIMEOUT,
    click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON."),
    ROUTER,
]


def sampling_options(command: _Command) -> _Command:
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Asked:
    """The values of `sampling_options`."""

    model: str
    tenant: str
    adapter: str
    session: str
    max_ttft: float | None
    max_cost: float | None
    min_quality: float | None
    region: tuple[str, ...]
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    n: int | None
    stop: tuple[str, ...]
    speculation: str | None
    json_object: bool
    json_schema: str | None
    regex: str | None
    grammar: str | None
    choice: tuple[str, ...]
    structural_tag: str | None
    watermark: bool
    retain: float | None
    timeout: float
    as_json: bool
    router: str | None

    def call(self) -> dict[str, Any]:
        """What any call to the router takes besides what it asks: keyword arguments of the client's methods."""
        return {
            "model": self.model,
            "timeout": self.timeout,
            "tenant": self.tenant,
            "adapter": self.adapter,
            "routing": self.routing(),
            **self._retention(),
        }

    def _retention(self) -> dict[str, Any]:
        """Under an id that its user has from the beginning."""
        if self.retain is None:
            return {}
        request_id = uuid4().hex
        click.secho(f"retained for {self.retain:g} s: weir resume {request_id}", fg="bright_black", err=True)
        return {"retain": self.retain, "request_id": request_id}

    def routing(self) -> RoutingOptions:
        """Raises click.BadParameter for what the wire type cannot hold; the router checks the rest."""
        routing = RoutingOptions(session=self.session)
        values = {"min_quality": self.min_quality, "max_cost_micros": _micros(self.max_cost)}
        constraints = _message(Constraints, values)
        constraints.regions.extend(self.region)
        if self.max_ttft is not None:
            constraints.max_ttft.FromNanoseconds(round(self.max_ttft * 1e9))
        if constraints.ByteSize():
            routing.constraints.CopyFrom(constraints)
        return routing

    def sampling(self) -> SamplingParameters:
        """Raises click.BadParameter for what the wire type cannot hold; the router checks the rest."""
        values = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed", "n")}
        sampling = _message(SamplingParameters, values)
        if (guide := self._guide()) is not None:
            sampling.guide.CopyFrom(guide)
        if self.speculation is not None:
            sampling.speculation.mode = _SPECULATION_MODES[self.speculation]
        if self.watermark:
            sampling.watermark.SetInParent()
        return sampling

    def _guide(self) -> Guide | None:
        asked = {
            "--json-object": self.json_object and Guide(json_object=JsonObject()),
            "--json-schema": self.json_schema is not None and Guide(json_schema=_text_of(self.json_schema)),
            "--regex": self.regex is not None and Guide(regex=self.regex),
            "--grammar": self.grammar is not None and Guide(ebnf=_text_of(self.grammar)),
            "--choice": bool(self.choice) and Guide(choice=Choice(options=self.choice)),
            "--structural-tag": self.structural_tag is not None and Guide(structural_tag=_text_of(self.structural_tag)),
        }
        given = {option: guide for option, guide in asked.items() if isinstance(guide, Guide)}
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)}: an answer follows one guide")
        return next(iter(given.values()), None)

    def stopping(self) -> StoppingConditions:
        stopping = _message(StoppingConditions, {"max_tokens": self.max_tokens})
        stopping.stop.extend(self.stop)
        return stopping


def _micros(units: float | None) -> int | None:
    """Prices are in millionths. What costs less than one of them is rounded down: never more than was allowed."""
    return None if units is None else math.floor(units * 1e6)


def _text_of(value: str) -> str:
    """What the file of this name holds; or the value itself, when there is none."""
    try:
        return Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value
    except (OSError, ValueError):
        return value  # too long for a name, or no text: the router says what is wrong with it


_Message = TypeVar("_Message", SamplingParameters, StoppingConditions, Constraints)


def _message(kind: type[_Message], values: dict[str, Any]) -> _Message:
    message = kind()
    for name, value in values.items():
        if value is not None:
            try:
                setattr(message, name, value)
            except (ValueError, TypeError) as error:
                raise click.BadParameter(f"{value}: {error}", param_hint=f"--{name.replace('_', '-')}") from error
    return message
