"""A plan as values, checked: what a client may ask of several models together. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1 import ensemble_pb2 as pb
from weir_chassis.durations import seconds_of
from weir_chassis.errors import InvalidArgument
from weir_router.validation import MAX_MODEL_BYTES

# Each is a whole request: a plan costs as many times what one does.
_MAX_MEMBERS: Final = 8
_MAX_MARKERS: Final = 16
_MAX_MARKER_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Step:
    model: str
    min_mean_logprob: float | None
    abstain_markers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cascade:
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Hedge:
    models: Sequence[str]
    after_seconds: float


@dataclass(frozen=True, slots=True)
class Vote:
    models: Sequence[str]
    quorum: int


@dataclass(frozen=True, slots=True)
class Judge:
    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class Judgement:
    candidates: Sequence[str]
    judges: Sequence[Judge]
    # Of the judges.
    quorum: int


Plan = Cascade | Hedge | Vote | Judgement


def plan_of(message: pb.EnsemblePlan) -> Plan:
    """Raises InvalidArgument for the first field that is wrong."""
    if message.HasField("deadline") and seconds_of(message.deadline) <= 0:
        raise InvalidArgument("plan.deadline", "must be more than 0 s")
    match message.WhichOneof("kind"):
        case "cascade":
            _check_members("plan.cascade.steps", [step.model for step in message.cascade.steps], ".model")
            return Cascade([_step(f"plan.cascade.steps[{i}]", step) for i, step in enumerate(message.cascade.steps)])
        case "hedge":
            _check_members("plan.hedge.models", message.hedge.models)
            after = seconds_of(message.hedge.after)
            if after < 0:
                raise InvalidArgument("plan.hedge.after", f"must be 0 s or more, is {after:g} s")
            return Hedge(tuple(message.hedge.models), after)
        case "vote":
            _check_members("plan.vote.models", message.vote.models)
            quorum = _quorum("plan.vote.quorum", message.vote.quorum, len(message.vote.models))
            return Vote(tuple(message.vote.models), quorum)
        case "judgement":
            return _judgement(message.judgement)
        case _:
            raise InvalidArgument("plan", "names no kind: `cascade`, `hedge`, `vote` or `judgement`")


def plan_seconds(message: pb.EnsemblePlan, left_seconds: float | None) -> float | None:
    """Of the plan, which has no more than its call. None: it may go on for ever."""
    if not message.HasField("deadline"):
        return left_seconds
    own = seconds_of(message.deadline)
    return own if left_seconds is None else min(own, left_seconds)


def most_requests(plan: Plan) -> int:
    """That the plan may take: what one may cost is an equal part of what all may."""
    match plan:
        case Cascade(steps):
            return len(steps)
        case Hedge(models) | Vote(models):
            return len(models)
        case Judgement(candidates, judges):
            return len(candidates) + len(judges)


def _step(path: str, step: pb.CascadeStep) -> Step:
    if step.HasField("min_mean_logprob") and math.isnan(step.min_mean_logprob):
        raise InvalidArgument(f"{path}.min_mean_logprob", "is no number")
    if len(step.abstain_markers) > _MAX_MARKERS:
        raise InvalidArgument(f"{path}.abstain_markers", f"must have at most {_MAX_MARKERS} entries")
    for index, marker in enumerate(step.abstain_markers):
        if not 1 <= len(marker.encode()) <= _MAX_MARKER_BYTES:
            raise InvalidArgument(f"{path}.abstain_markers[{index}]", f"must be 1 to {_MAX_MARKER_BYTES} bytes")
    least = step.min_mean_logprob if step.HasField("min_mean_logprob") else None
    return Step(step.model, least, tuple(step.abstain_markers))


def _judgement(message: pb.Judgement) -> Judgement:
    _check_members("plan.judgement.candidates", message.candidates)
    _check_members("plan.judgement.judges", [judge.model for judge in message.judges], ".model")
    weights = [judge.weight if judge.HasField("weight") else 1.0 for judge in message.judges]
    for index, weight in enumerate(weights):
        if not 0 < weight <= 1e6:
            raise InvalidArgument(f"plan.judgement.judges[{index}].weight", f"must be in (0, 1e6], is {weight:g}")
    judges = [Judge(judge.model, weight) for judge, weight in zip(message.judges, weights, strict=True)]
    quorum = _quorum("plan.judgement.quorum", message.quorum, len(judges))
    return Judgement(tuple(message.candidates), judges, quorum)


def _check_members(path: str, models: Sequence[str], field: str = "") -> None:
    if not 1 <= len(models) <= _MAX_MEMBERS:
        raise InvalidArgument(path, f"must have 1 to {_MAX_MEMBERS} entries, has {len(models)}")
    for index, model in enumerate(models):
        if not 1 <= len(model.encode()) <= MAX_MODEL_BYTES:
            raise InvalidArgument(f"{path}[{index}]{field}", f"must be 1 to {MAX_MODEL_BYTES} bytes of UTF-8")


def _quorum(path: str, asked: int, members: int) -> int:
    if asked > members:
        raise InvalidArgument(path, f"must be at most {members}, as many as there are, is {asked}")
    return asked or members // 2 + 1
