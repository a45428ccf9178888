"""`weir resume` and `weir cancel`: requests that were asked to be retained."""

from __future__ import annotations

import click

from weir_client import printing
from weir_client.client import Client
from weir_client.options import ROUTER, TENANT, TIMEOUT
from weir_client.running import run_async
from weir_client.stack import router_address


@click.command()
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@TENANT
@TIMEOUT
@ROUTER
@run_async
async def resume(request_id: str, as_json: bool, tenant: str, timeout: float, router: str | None) -> None:
    """Stream a retained answer from its beginning, to its end. Whoever reads it elsewhere is cut off.

    \b
    Example:
      weir chat "Tell me a story." --retain 60
      weir resume 0b1c6e3f
    """
    async with Client(router_address(router)) as client:
        await printing.stream(client.resume(request_id, timeout=timeout, tenant=tenant), as_json=as_json)


@click.command()
@click.argument("request_id")
@TENANT
@ROUTER
@run_async
async def cancel(request_id: str, tenant: str, router: str | None) -> None:
    """End a retained request, whoever reads it.

    \b
    Example:
      weir cancel 0b1c6e3f
    """
    async with Client(router_address(router)) as client:
        await client.cancel(request_id, tenant=tenant)
