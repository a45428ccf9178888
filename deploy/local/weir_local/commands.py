"""`weir up` and `weir demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_client import printing
from weir_client.client import Client, user
from weir_client.running import run_async
from weir_local import stack
from weir_local.placement import Placement

_PLACEMENT = [
    click.option(
        "--model",
        "model_dir",
        type=click.Path(path_type=Path),
        help="Hugging Face directory. Default: the demo model.",
    ),
    click.option("--name", help="Name clients use for the model. Default: the directory's."),
    click.option("--executors", type=click.IntRange(1, 16), default=1, show_default=True, help="Executors to start."),
    click.option(
        "--prefill", type=click.IntRange(0, 16), default=0, help="Executors that only compute prompts; with --decode."
    ),
    click.option(
        "--decode", type=click.IntRange(0, 16), default=0, help="Executors that go on after them, for --executors."
    ),
    click.option(
        "--disaggregate-tokens", type=click.IntRange(1), help="A prompt of so many tokens goes to --prefill first."
    ),
    click.option("--one-process", is_flag=True, help="Place all services in one process, in memory."),
    click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Default: the checkpoint's."),
    click.option("--device", default="cpu", show_default=True, help="'cpu' or 'cuda'."),
    click.option(
        "--draft-model",
        type=click.Path(path_type=Path),
        help="Directory of a smaller model of the same vocabulary, that guesses tokens ahead.",
    ),
    click.option(
        "--watermark-key",
        "watermark_key_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file with a secret of 16 bytes or more: answers may then be asked for with a watermark.",
    ),
    click.option("--kv-cache-mib", type=click.IntRange(16), default=512, show_default=True, help="Of each executor."),
    click.option(
        "--adapter-dir",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Directory of LoRA adapters that 'weir adapters load' may load. Default: no adapters.",
    ),
    click.option(
        "--routing",
        "routing_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML of how the router routes: policies, aliases, tenants. It may change while it runs.",
    ),
    click.option(
        "--nats",
        "nats_url",
        help="nats://host:port for KV events, the queue of --prefill, and workers that come later. Default: none.",
    ),
    click.option("--region", default="", help="Where this machine is, such as 'eu-west', for requests that must stay."),
    click.option("--kv-store-mib", type=click.IntRange(1), default=512, show_default=True, help="Of the kvstore."),
    click.option("--kv-redis", "kv_redis_url", help="redis://host:port to share prefixes with other machines by."),
    click.option(
        "--kv-tiers",
        "kv_tiers_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML of the kvstore's tiers, in place of --kv-store-mib and --kv-redis; it may change while they run.",
    ),
    click.option(
        "--kv-trace",
        "kv_trace_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write down there what the kvstore is asked, for 'weir kv trace'.",
    ),
]


def _placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_PLACEMENT):
        command = option(command)
    return command


@click.command()
@_placement_options
@click.option("--port", type=click.IntRange(0, 65535), default=7700, show_default=True, help="Of the router; 0: any.")
@run_async
async def up(**options: Any) -> None:
    """Start all five services on loopback, wait until they are ready, and run until Ctrl-C, which drains them.

    A second Ctrl-C does not wait for the drain.

    \b
    Example:
      weir up --model ~/models/Qwen3-0.6B --executors 2
    """
    await stack.up(Placement(**options))


@click.command()
@_placement_options
@click.option("--prompt", default="What is a weir?", show_default=True, help="What to ask.")
@run_async
async def demo(prompt: str, **options: Any) -> None:
    """Start everything, stream one answer, stop everything.

    \b
    Example:
      weir demo --prompt "Tell me a short story about a fox."
    """
    async with stack.running(Placement(port=0, **options)) as services, Client(services.router) as client:
        click.secho(f"\n> {prompt}", bold=True)
        greedy = SamplingParameters(temperature=0)
        await printing.stream_text(client.chat([user(prompt)], sampling=greedy, timeout=120))
        click.echo()
