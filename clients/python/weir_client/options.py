"""Command-line options that `chat` and `generate` share, and the messages they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions

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
_SAMPLING = [
    MODEL,
    TENANT,
    click.option("--max-tokens", type=int, help="Tokens to generate at most."),
    click.option("--temperature", "-t", type=float, help="0 is greedy."),
    click.option("--top-p", type=float, help="Keep the most likely tokens up to this total probability."),
    click.option("--top-k", type=int, help="Keep the k most likely tokens."),
    click.option("--seed", type=int, help="The same seed draws the same answer."),
    click.option("-n", "n", type=int, help="Outputs to draw."),
    click.option("--stop", multiple=True, help="End before this text. May be given several times."),
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
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    n: int | None
    stop: tuple[str, ...]
    timeout: float
    as_json: bool
    router: str | None

    def call(self) -> dict[str, Any]:
        """What any call to the router takes besides what it asks: keyword arguments of the client's methods."""
        return {"model": self.model, "timeout": self.timeout, "tenant": self.tenant}

    def sampling(self) -> SamplingParameters:
        """Raises click.BadParameter for what the wire type cannot hold; the router checks the rest."""
        values = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed", "n")}
        return _message(SamplingParameters, values)

    def stopping(self) -> StoppingConditions:
        stopping = _message(StoppingConditions, {"max_tokens": self.max_tokens})
        stopping.stop.extend(self.stop)
        return stopping


_Message = TypeVar("_Message", SamplingParameters, StoppingConditions)


def _message(kind: type[_Message], values: dict[str, Any]) -> _Message:
    message = kind()
    for name, value in values.items():
        if value is not None:
            try:
                setattr(message, name, value)
            except (ValueError, TypeError) as error:
                raise click.BadParameter(f"{value}: {error}", param_hint=f"--{name.replace('_', '-')}") from error
    return message
