"""Requests and workers of the providers' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from fakes.openai_server import KEY, MODEL, OpenAIServer
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_chassis.clock import SystemClock
from weir_chassis.metrics import Metrics
from weir_router.faults.breaker import BreakerLimits
from weir_router.faults.breakers import Breakers
from weir_router.fleet.changes import Changes
from weir_router.metrics import RouterMetrics
from weir_router.providers.config import ProviderTable
from weir_router.providers.external import ExternalContext, ExternalRequest
from weir_router.providers.provider import Provider
from weir_router.regions import NO_CLIENT, Residency
from weir_router.request import ClientRequest, Prompt, TextPrompt

CAPABILITIES = ("chat", "completions", "n", "logprobs", "seed", "tools", "json_object", "json_schema")


def chat(*texts: str, **fields: Any) -> ChatPrompt:
    """A user's message for each text."""
    return ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text=text)]) for text in texts], **fields)


def request(
    prompt: Prompt | None = None,
    *,
    sampling: SamplingParameters | None = None,
    stopping: StoppingConditions | None = None,
    residency: Residency = NO_CLIENT,
    **fields: Any,
) -> ClientRequest:
    complete = SamplingParameters(seed=5, n=1)
    complete.MergeFrom(sampling or SamplingParameters())
    values: dict[str, Any] = {"adapter": "", "skip_special_tokens": None, "tenant": "", "priority": 0, **fields}
    return ClientRequest(
        request_id="r",
        model="demo",
        prompt=prompt or TextPrompt("one two three", None),
        sampling=complete,
        stopping=stopping or StoppingConditions(),
        residency=residency,
        **values,
    )


def asked(client_request: ClientRequest) -> ExternalRequest:
    return ExternalRequest(client_request, "demo", 1, prompt_tokens=7, left_seconds=None)


def table(server: OpenAIServer, tmp_path: Path, **fields: Any) -> ProviderTable:
    key = tmp_path / "key"
    if not key.exists():
        key.write_text(f"{KEY}\n")
    values: dict[str, Any] = {
        "name": "p",
        "base_url": server.url,
        "api_key_file": key,
        "models": {"demo": MODEL},
        "capabilities": CAPABILITIES,
        **fields,
    }
    return ProviderTable.model_validate(values)


def context() -> ExternalContext:
    clock, changes, metrics = SystemClock(), Changes(), RouterMetrics(Metrics("router"))
    breakers = Breakers(
        BreakerLimits(), 0.5, clock=clock, random=Random(0), metrics=metrics, on_change=changes.note_fact
    )
    return ExternalContext(clock, lambda: 0.5, lambda: None, changes, breakers)


@asynccontextmanager
async def provider(server: OpenAIServer, tmp_path: Path, **fields: Any) -> AsyncIterator[Provider]:
    """One that has been probed."""
    worker = Provider(table(server, tmp_path, **fields), context())
    try:
        await worker.probe()
        yield worker
    finally:
        await worker.close()
