"""`weir explain`: where a request would go, and why, as a router would decide now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click
import grpc
from google.protobuf.json_format import MessageToJson

from weir.inference.v1.chat_pb2 import ChatPrompt
from weir.inference.v1.stream_pb2 import WorkerScore
from weir.router.v1 import fleet_pb2 as pb
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest
from weir_chassis.channel import open_channel
from weir_chassis.status import from_rpc_error
from weir_chassis.tenant import tenant_metadata
from weir_client.client import user
from weir_client.options import Asked, sampling_options
from weir_client.printing import columns
from weir_client.running import run_async
from weir_client.stack import router_address

# Of the headings before the terms, those of texts.
_TEXTS: Final = 1


@click.command()
@click.argument("text")
@click.option("--raw", is_flag=True, help="TEXT is a prompt as 'weir generate' takes it, and no message of a chat.")
@sampling_options
@run_async
async def explain(text: str, raw: bool, **options: Any) -> None:
    """Where a chat with TEXT would go, and why; nothing is executed. Takes what 'weir chat' takes.

    The worker with the lowest score is chosen. What the score is made of differs from policy to policy.

    \b
    Example:
      weir explain "What is a weir?" --session me
    """
    asked = Asked(**options)
    async with open_channel(router_address(asked.router)) as channel:
        explained = await _ask(channel, _request(text, asked, raw=raw), asked)
    click.echo(_as_json(explained) if asked.as_json else "\n".join(_lines(explained)))


def _request(text: str, asked: Asked, *, raw: bool) -> pb.ExplainRouteRequest:
    common: dict[str, Any] = {
        "model": asked.model,
        "adapter": asked.adapter,
        "sampling": asked.sampling(),
        "stopping": asked.stopping(),
        "routing": asked.routing(),
    }
    if raw:
        return pb.ExplainRouteRequest(generate=GenerateRequest(text=text, **common))
    return pb.ExplainRouteRequest(chat=ChatRequest(prompt=ChatPrompt(messages=[user(text)]), **common))


async def _ask(channel: grpc.aio.Channel, request: pb.ExplainRouteRequest, asked: Asked) -> pb.ExplainRouteResponse:
    """Raises the WeirError that the router meant."""
    call = FleetServiceStub(channel).ExplainRoute(
        request, timeout=asked.timeout, metadata=tenant_metadata(asked.tenant)
    )
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _as_json(explained: pb.ExplainRouteResponse) -> str:
    return str(MessageToJson(explained, preserving_proto_field_name=True, indent=None))


def _lines(explained: pb.ExplainRouteResponse) -> Iterator[str]:
    version = explained.model_version
    yield f"model      {version.model}@{version.revision[:8]} ({explained.model_rule})"
    by = f" by {explained.policy}"
    prefill = f", its prompt computed by {explained.prefill_executor}" if explained.prefill_executor else ""
    yield f"executor   {click.style(explained.executor, fg='green')}{by}{prefill}"
    yield f"others     tokenizer {explained.tokenizer or '-'}, postprocess {explained.postprocessor}"
    cost = f", at most {explained.cost_micros / 1e6:g} units" if explained.HasField("cost_micros") else ""
    ttft = explained.ttft.ToTimedelta().total_seconds()
    yield f"predicted  {explained.prompt_tokens} prompt tokens, first token in {1e3 * ttft:.0f} ms{cost}"
    yield ""
    yield columns(list(_table(explained)), left=_TEXTS)
    for exclusion in explained.excluded:
        yield click.style(f"! {exclusion.worker}: {exclusion.reason}", fg="yellow")


def _table(explained: pb.ExplainRouteResponse) -> Iterator[list[str]]:
    """A line for each worker; a column for each term that any of them has."""
    terms = sorted({name for score in explained.scores for name in score.terms})
    yield ["worker", "score", *terms]
    for score in explained.scores:
        yield [score.worker, f"{score.score:.6g}", *(_term(score, name) for name in terms)]


def _term(score: WorkerScore, name: str) -> str:
    return f"{score.terms[name]:.6g}" if name in score.terms else "-"
