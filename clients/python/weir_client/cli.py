"""The `weir` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from weir.inference.v1.embedding_pb2 import Pooling
from weir_client import printing, status
from weir_client.adapters import adapters
from weir_client.client import Client, system, user
from weir_client.explain import explain
from weir_client.fleet import fleet
from weir_client.kv import kv
from weir_client.memory import memory
from weir_client.operations import operations
from weir_client.options import ADAPTER, MODEL, ROUTER, TENANT, TIMEOUT, Asked, sampling_options
from weir_client.retained import cancel, resume
from weir_client.running import load_command, run_async
from weir_client.stack import router_address


class _Commands(click.Group):
    """The client's own commands, and those that other rooms register as `weir.commands` entry points (`up`, `demo`).

    They are loaded when named, so that the client alone works where no service is installed.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_registered()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _registered():
            return load_command(_registered()[cmd_name])
        return super().get_command(ctx, cmd_name)


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="weir.commands")}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="weir")
def main() -> None:
    """Weir serves large language models as five gRPC services.

    \b
    Example:
      weir up                          # in one terminal
      weir chat "What is a weir?"      # in another
    """


@main.command()
@click.argument("text", required=False)
@click.option("--system", "system_text", help="System message to begin with.")
@sampling_options
@run_async
async def chat(text: str | None, system_text: str | None, **options: Any) -> None:
    """Stream an answer to TEXT; without TEXT, hold a conversation (end it with Ctrl-D).

    \b
    Example:
      weir chat "What does the json module do?" --temperature 0
    """
    asked = Asked(**options)
    history = [system(system_text)] if system_text else []
    async with Client(router_address(asked.router)) as client:
        for line in [text] if text is not None else _typed_lines():
            history.append(user(line))
            events = client.chat(history, sampling=asked.sampling(), stopping=asked.stopping(), **asked.call())
            history.append(printing.assistant(await printing.stream(events, as_json=asked.as_json)))


@main.command()
@click.argument("prompt")
@sampling_options
@run_async
async def generate(prompt: str, **options: Any) -> None:
    """Stream what follows PROMPT, as it is: no chat template.

    \b
    Example:
      weir generate "Once upon a time" --max-tokens 60
    """
    asked = Asked(**options)
    async with Client(router_address(asked.router)) as client:
        events = client.generate(prompt, sampling=asked.sampling(), stopping=asked.stopping(), **asked.call())
        await printing.stream(events, as_json=asked.as_json)


@main.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--pooling", type=click.Choice(["mean", "last"]), default="last", show_default=True)
@click.option("--normalize/--raw", default=True, help="Scale each vector to length 1, or leave it as it is.")
@MODEL
@TENANT
@ADAPTER
@TIMEOUT
@ROUTER
@run_async
async def embed(texts: Sequence[str], pooling: str, normalize: bool, **where: Any) -> None:
    """Print a vector for each TEXT, as one line of JSON.

    \b
    Example:
      weir embed "What is a weir?" "A low dam." --pooling mean
    """
    async with Client(router_address(where["router"])) as client:
        kind = Pooling.Value(f"POOLING_{pooling.upper()}")
        answer = await client.embed(
            texts,
            model=where["model"],
            pooling=kind,
            normalize=normalize,
            timeout=where["timeout"],
            tenant=where["tenant"],
            adapter=where["adapter"],
        )
    for text, embedding in zip(texts, answer.embeddings, strict=True):
        click.echo(printing.embedding_json(text, embedding))


@main.command()
@click.argument("text")
@click.option("--green-fraction", type=float, help="As it was when the text was generated. Default: the usual one.")
@MODEL
@TIMEOUT
@ROUTER
@run_async
async def detect(text: str, green_fraction: float | None, **where: Any) -> None:
    """Test TEXT for your tenant's watermark, and print what was found as one line of JSON.

    \b
    Example:
      weir detect "$(weir generate 'Once upon a time' --watermark)"
    """
    async with Client(router_address(where["router"])) as client:
        found = await client.detect_watermark(
            text, model=where["model"], green_fraction=green_fraction, timeout=where["timeout"]
        )
    click.echo(printing.detection_json(found))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per model or alias.")
@ROUTER
@run_async
async def models(as_json: bool, router: str | None) -> None:
    """List what is served, by how many healthy workers, and the aliases.

    \b
    Example:
      weir models --json
    """
    async with Client(router_address(router)) as client:
        listed = await client.list_models()
    for model in listed.models:
        click.echo(printing.model_json(model) if as_json else printing.model_line(model))
    for alias in listed.aliases:
        click.echo(printing.model_json(alias) if as_json else printing.alias_line(alias))


@main.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per service.")
@click.option("--requests", "with_requests", is_flag=True, help="List what lives in each executor, and why it waits.")
@click.option("--executor", metavar="HOST:PORT", help="Ask this executor, and no stack.")
@run_async
async def status_command(as_json: bool, with_requests: bool, executor: str | None) -> None:
    """Health and load of the services that 'weir up' started on this machine, or of one executor anywhere.

    \b
    Example:
      weir status --requests
    """
    reports = await status.ask_all(executor, with_requests=with_requests)
    for report in reports:
        click.echo(report.to_json() if as_json else report.to_line())
    if not all(report.serving for report in reports):
        sys.exit(1)


main.add_command(memory)
main.add_command(adapters)
main.add_command(kv)
main.add_command(operations)
main.add_command(fleet)
main.add_command(explain)
main.add_command(resume)
main.add_command(cancel)


def _typed_lines() -> Iterator[str]:
    """Lines as the user types them, or as standard input holds them."""
    while True:
        try:
            with _interruptible():
                line = click.prompt(click.style("you", fg="cyan"), prompt_suffix="> ", err=True)
        except click.Abort:
            click.echo(err=True)
            return
        yield line


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a wait that blocks the event loop; asyncio's own handler would first let the wait come to its end."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    main()
