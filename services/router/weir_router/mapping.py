"""Messages of the two doors ⇄ the one request and its events. Nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.inference.v1.stream_pb2 import Accepted, Continued, Delta, OutputFinished, Receipt, WorkerScore
from weir.router.v1.fleet_pb2 import Alias, AliasTarget
from weir.router.v1.router_pb2 import (
    ChatRequest,
    ChatResponse,
    GenerateRequest,
    GenerateResponse,
    ListModelsResponse,
    Model,
    ResumeResponse,
    RunEnsembleRequest,
    ServedAlias,
)
from weir_router.delivery import Event
from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, ExternalView, WorkerState
from weir_router.models.aliases import TargetView
from weir_router.policies.policy import Scored
from weir_router.request import Caller, ClientRequest, Prompt, TextPrompt, TokenIdsPrompt

R = TypeVar("R", ChatResponse, GenerateResponse, ResumeResponse)

_FIELDS: dict[type[Event], str] = {
    Accepted: "accepted",
    Delta: "delta",
    Continued: "continued",
    OutputFinished: "finished",
    Usage: "usage",
    Receipt: "receipt",
}


def from_generate(request: GenerateRequest, request_id: str, seed: int, caller: Caller) -> ClientRequest:
    """`seed` is for a request that names none. The request must be valid."""
    return _request(request, _prompt(request), request_id, seed, caller)


def from_chat(request: ChatRequest, request_id: str, seed: int, caller: Caller) -> ClientRequest:
    """As `from_generate`."""
    return _request(request, request.prompt, request_id, seed, caller)


def response(kind: type[R], event: Event) -> R:
    """One event as a message of a stream."""
    fields: dict[str, Any] = {_FIELDS[type(event)]: event}
    return kind(**fields)


def batched_response(kind: type[R], events: Sequence[Event]) -> R:
    """Events that are there together as one message: at least one of them."""
    message = response(kind, events[0])
    for event in events[1:]:
        getattr(message.more.add(), _FIELDS[type(event)]).CopyFrom(event)
    return message


def ensemble_chat(request: RunEnsembleRequest) -> ChatRequest:
    """What each candidate is asked, but for its model."""
    return ChatRequest(
        prompt=request.prompt,
        sampling=request.sampling,
        stopping=request.stopping,
        priority=request.priority,
        routing=request.routing,
    )


def list_models(snapshot: FleetSnapshot, aliases: Mapping[str, Sequence[TargetView]]) -> ListModelsResponse:
    """One entry per version that an executor serves or has served, and per model of the providers; and the aliases.

    What other routers serve is theirs to list: two that list each other's would believe each other for ever.
    """
    by_version: dict[Version, list[ExecutorView]] = {}
    for executor in snapshot.executors:
        if executor.model is not None:
            by_version.setdefault(executor.model.version, []).append(executor)
    return ListModelsResponse(
        models=[*(_model(v, by_version[v], snapshot) for v in sorted(by_version)), *_provided(snapshot)],
        aliases=[ServedAlias(name=name, models=_by_weight(targets)) for name, targets in aliases.items()],
    )


def alias(name: str, targets: Sequence[TargetView]) -> Alias:
    return Alias(name=name, targets=[_alias_target(target) for target in targets])


def _alias_target(view: TargetView) -> AliasTarget:
    return AliasTarget(
        model=view.target.model,
        revision=view.target.revision,
        arm=view.target.arm,
        weight=view.weight,
        weight_now=view.weight_now,
        reason=view.reason,
        requests=view.requests,
        failed_requests=view.failed_requests,
    )


def _by_weight(targets: Sequence[TargetView]) -> list[str]:
    ordered = sorted(targets, key=lambda view: -view.weight_now)
    return [str(view.target) for view in ordered if view.weight_now]


def worker_score(scored: Scored) -> WorkerScore:
    message = WorkerScore(worker=scored.candidate.address, score=scored.score)
    # One by one: a message that is given a whole mapping takes three times as long.
    terms = message.terms
    for name, value in scored.terms.items():
        terms[name] = value
    return message


def _provided(snapshot: FleetSnapshot) -> Iterator[Model]:
    by_version: dict[Version, list[ExternalView]] = {}
    for worker in snapshot.externals:
        for model in worker.models.values() if not worker.forwards else ():
            by_version.setdefault(model.version, []).append(worker)
    for version, workers in sorted(by_version.items()):
        yield Model(
            model_version=version.message(),
            max_model_len=max(worker.models[version.model].max_model_len for worker in workers),
            workers=len(workers),
            healthy_workers=sum(worker.state is WorkerState.SERVING for worker in workers),
            has_chat_template=any(worker.abilities is None or "chat" in worker.abilities for worker in workers),
        )


def _model(version: Version, executors: list[ExecutorView], snapshot: FleetSnapshot) -> Model:
    return Model(
        model_version=version.message(),
        max_model_len=max(executor.model.max_model_len for executor in executors if executor.model),
        workers=len(executors),
        healthy_workers=sum(executor.state is WorkerState.SERVING for executor in executors),
        has_chat_template=snapshot.has_chat_template(version),
    )


def _request(
    request: GenerateRequest | ChatRequest, prompt: Prompt, request_id: str, seed: int, caller: Caller
) -> ClientRequest:
    return ClientRequest(
        request_id=request_id,
        model=request.model,
        prompt=prompt,
        sampling=_complete(request.sampling, seed),
        stopping=request.stopping,
        priority=request.priority,
        tenant=caller.tenant,
        residency=caller.residency,
        adapter=request.adapter,
        skip_special_tokens=request.skip_special_tokens if request.HasField("skip_special_tokens") else None,
        routing=request.routing,
        subject=caller.subject,
        seeded=request.sampling.HasField("seed"),
        via=caller.via,
    )


def _prompt(request: GenerateRequest) -> Prompt:
    if request.HasField("token_ids"):
        return TokenIdsPrompt(request.token_ids.token_ids)
    return TextPrompt(request.text, request.add_special_tokens if request.HasField("add_special_tokens") else None)


def _complete(sampling: SamplingParameters, seed: int) -> SamplingParameters:
    complete = SamplingParameters()
    complete.CopyFrom(sampling)
    if not complete.HasField("seed"):
        complete.seed = seed
    if not complete.HasField("n"):
        complete.n = 1
    return complete
