"""A client's message and what came with its call → the one request, valid and where its tenant may have it."""

from __future__ import annotations

from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest
from weir_chassis.telemetry import Metadata, current_request
from weir_chassis.tenant import tenant_from
from weir_router import mapping, validation
from weir_router.models.subject import subject_from
from weir_router.providers.via import via_from
from weir_router.request import Caller, ClientRequest
from weir_router.routing import Routing


def incoming(
    request: GenerateRequest | ChatRequest, metadata: Metadata | None, routing: Routing, seed: int
) -> ClientRequest:
    """`seed` is for a request that names none. Raises InvalidArgument, Unsupported, PermissionDenied."""
    if isinstance(request, ChatRequest):
        validation.check_chat(request)
    else:
        validation.check_generate(request)
    tenant = tenant_from(metadata)
    residency = routing.residency(tenant, request.routing.constraints.regions)
    caller = Caller(residency, tenant, subject_from(metadata, request.routing.session), via_from(metadata))
    if isinstance(request, ChatRequest):
        return mapping.from_chat(request, current_request_id(), seed, caller)
    return mapping.from_generate(request, current_request_id(), seed, caller)


def current_request_id() -> str:
    """The caller's, or the one that the chassis made."""
    request = current_request()
    assert request is not None, "a call without the chassis' interceptor"
    return request.request_id
