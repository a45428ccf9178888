"""A client's request as the next router is asked for it. Pure."""

from __future__ import annotations

from typing import Any

from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest, TokenPrompt
from weir_router.regions import Residency
from weir_router.request import ClientRequest, TextPrompt, TokenIdsPrompt


def remote_request(request: ClientRequest, region: str) -> GenerateRequest | ChatRequest:
    """All that the client said, for a router in this region, but for the model's name."""
    common: dict[str, Any] = {
        "sampling": _sampling(request),
        "stopping": request.stopping,
        "priority": request.priority,
        "skip_special_tokens": request.skip_special_tokens,
        "adapter": request.adapter,
        "routing": _routing(request, region),
    }
    prompt = request.prompt
    if isinstance(prompt, TokenIdsPrompt):
        return GenerateRequest(token_ids=TokenPrompt(token_ids=prompt.token_ids), **common)
    if isinstance(prompt, TextPrompt):
        return GenerateRequest(text=prompt.text, add_special_tokens=prompt.add_special_tokens, **common)
    return ChatRequest(prompt=prompt, **common)


def _sampling(request: ClientRequest) -> SamplingParameters:
    """A seed that was drawn here is nobody's wish: the next router may ask those who know none."""
    sampling = SamplingParameters()
    sampling.CopyFrom(request.sampling)
    if not request.seeded:
        sampling.ClearField("seed")
    return sampling


def _routing(request: ClientRequest, region: str) -> RoutingOptions:
    """Where it may go is a constraint that the next router keeps. Retained streams and hedges are this one's own."""
    own, constraints = request.routing, Constraints(regions=sorted(_regions(request.residency, region)))
    return RoutingOptions(session=own.session, continuation=own.continuation, constraints=constraints)


def _regions(residency: Residency, region: str) -> frozenset[str]:
    """A router at home keeps the request at home. Empty: anywhere."""
    if residency.regions is not None and region in residency.regions:
        return residency.regions
    return residency.allowed or frozenset()
