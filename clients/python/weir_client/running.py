"""Commands that are loaded when named, and async ones, run to their end or to one readable line."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from importlib.metadata import EntryPoint
from typing import Any

import click

from weir_chassis.errors import WeirError
from weir_client import printing


def run_async(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async command; a typed error becomes one readable line and exit code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            asyncio.run(command(*args, **kwargs))
        except WeirError as error:
            click.secho(printing.error_line(error), fg="red", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            sys.exit(130)

    return run


def load_command(point: EntryPoint) -> click.Command:
    """A command that needs more than the client alone. Raises click.ClickException where that is not installed."""
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'weir[local]'") from error
    assert isinstance(command, click.Command)
    return command
