"""The fleet as its operators see it: every worker with how it was found, what it says and what is routed to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from weir.fleet.v1 import instance_pb2 as pb_fleet
from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir.inference.v1.model_pb2 import ModelVersion
from weir.router.v1 import fleet_pb2 as pb
from weir_chassis.durations import duration
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.fleet import Fleet
from weir_router.fleet.link import Link
from weir_router.fleet.membership import Member
from weir_router.fleet.postprocess_link import PostprocessLink
from weir_router.fleet.problems import problems
from weir_router.fleet.views import (
    ExecutorView,
    ExternalView,
    Load,
    PostprocessorView,
    Price,
    TokenizerView,
    WorkerState,
)
from weir_router.providers.external import ExternalWorker

_STATES: Final[Mapping[WorkerState, pb.WorkerState.ValueType]] = {
    WorkerState.DOWN: pb.WORKER_STATE_DOWN,
    WorkerState.DRAINING: pb.WORKER_STATE_DRAINING,
    WorkerState.SERVING: pb.WORKER_STATE_SERVING,
}
_View = ExecutorView | TokenizerView | PostprocessorView


def to_fleet(fleet: Fleet, now: float) -> pb.GetFleetResponse:
    """`now`: monotonic seconds. Kvstores and other routers are told of as they announce themselves."""
    snapshot = fleet.snapshot()
    views: list[_View] = [*snapshot.executors, *snapshot.tokenizers, *snapshot.postprocessors]
    links = zip(fleet.links, views, strict=True)
    workers = [_worker(link, view, fleet.membership.members.get(link.place), now) for link, view in links]
    missing = problems(snapshot, fleet.membership.left_out, fleet.sources.unheard())
    outside = [
        _external(worker, view, now) for worker, view in zip(fleet.externals.workers, snapshot.externals, strict=True)
    ]
    others = map(_other, fleet.sources.others())
    return pb.GetFleetResponse(workers=[*workers, *outside, *others], problems=missing)


def _worker(link: Link, view: _View, member: Member | None, now: float) -> pb.Worker:
    """`member`: None for one that has left and finishes its streams."""
    worker = pb.Worker(
        instance=_instance(link, view, member),
        state=pb.WORKER_STATE_EJECTED if view.ejected else _STATES[view.state],
        source="" if member is None else member.source,
        since=duration(max(0.0, now - link.since)),
        ramp=link.ramp(now),
    )
    if isinstance(link, ExecutorLink):
        worker.routed_requests, worker.routed_tokens = link.outstanding.routed_requests, link.outstanding.routed_tokens
    if isinstance(link, PostprocessLink) and isinstance(view, PostprocessorView):
        worker.routed_requests = view.live_requests
    if isinstance(view, ExecutorView) and view.load is not None:
        worker.load.CopyFrom(_load(view.load, view.outstanding_tokens))
    return worker


def _external(worker: ExternalWorker, view: ExternalView, now: float) -> pb.Worker:
    """As it is configured: of itself a provider says nothing, and another router little."""
    traits = view.traits
    instance = Instance(
        instance_id=traits.instance_id,
        epoch=traits.epoch,
        kind=InstanceKind.Value(f"INSTANCE_KIND_{worker.kind.upper()}"),
        address=view.address,
        model_versions=[model.version.message() for model in view.models.values()],
        region=traits.region,
        price=None if traits.price is None else _price(traits.price),
        weight=traits.weight,
        capabilities=sorted(view.abilities or ()),
        capacity=traits.capacity,
    )
    return pb.Worker(
        instance=instance,
        state=pb.WORKER_STATE_EJECTED if view.ejected else _STATES[view.state],
        source="configured",
        since=duration(max(0.0, now - worker.since)),
        ramp=1.0,
        routed_requests=view.routed_requests,
        routed_tokens=view.routed_tokens,
    )


def _price(price: Price) -> pb_fleet.Price:
    return pb_fleet.Price(
        prompt_micros=price.prompt_micros,
        cached_prompt_micros=price.cached_prompt_micros,
        completion_micros=price.completion_micros,
        currency=price.currency,
    )


def _instance(link: Link, view: _View, member: Member | None) -> Instance:
    """What it said when it was asked; before that, what it announced. Its address is where this router finds it."""
    instance = Instance()
    announced = member.instance if member is not None and member.instance is not None else Instance()
    instance.CopyFrom(link.instance if link.instance.instance_id else announced)
    instance.kind, instance.address = InstanceKind.Value(f"INSTANCE_KIND_{link.kind.upper()}"), link.address
    if not instance.model_versions:
        instance.model_versions.extend(_versions(view))
    return instance


def _versions(view: _View) -> Iterable[ModelVersion]:
    if isinstance(view, ExecutorView):
        return [view.model.version.message()] if view.model is not None else []
    return [model.version.message() for model in view.models] if isinstance(view, TokenizerView) else []


def _load(load: Load, outstanding_tokens: int) -> pb.LoadReport:
    return pb.LoadReport(
        epoch=load.epoch,
        sequence=load.sequence,
        age=duration(load.age_seconds),
        waiting_requests=load.waiting_requests,
        running_sequences=load.running_sequences,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        outstanding_tokens=outstanding_tokens,
        tokens_per_second=load.tokens_per_second,
        step=duration(load.step_seconds),
    )


def _other(instance: Instance) -> pb.Worker:
    state = pb.WORKER_STATE_DRAINING if instance.draining else pb.WORKER_STATE_SERVING
    return pb.Worker(instance=instance, state=state, source="announced", ramp=1.0)
