from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from weir.inference.v1 import ensemble_pb2 as pb
from weir_chassis.errors import InvalidArgument
from weir_router.ensembles.plan import Hedge, Judge, Judgement, Plan, Vote, most_requests, plan_of, plan_seconds


def cascade(**step: Any) -> pb.EnsemblePlan:
    return pb.EnsemblePlan(cascade=pb.Cascade(steps=[pb.CascadeStep(**{"model": "m"} | step)]))


def vote(*models: str, quorum: int = 0) -> pb.EnsemblePlan:
    return pb.EnsemblePlan(vote=pb.Vote(models=models, quorum=quorum))


def judged(**judge: Any) -> pb.EnsemblePlan:
    judges = [pb.Judge(**{"model": "j"} | judge)]
    return pb.EnsemblePlan(judgement=pb.Judgement(candidates=["a", "b"], judges=judges))


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        (pb.EnsemblePlan(), "plan", "names no kind"),
        (pb.EnsemblePlan(cascade=pb.Cascade()), "plan.cascade.steps", "1 to 8 entries, has 0"),
        (cascade(model=""), "plan.cascade.steps[0].model", "1 to 128 bytes"),
        (cascade(min_mean_logprob=float("nan")), "plan.cascade.steps[0].min_mean_logprob", "is no number"),
        (cascade(abstain_markers=["x", ""]), "plan.cascade.steps[0].abstain_markers[1]", "1 to 256 bytes"),
        (cascade(abstain_markers=["x"] * 17), "plan.cascade.steps[0].abstain_markers", "at most 16"),
        (vote(*"abcdefghi"), "plan.vote.models", "1 to 8 entries, has 9"),
        (vote("a", "b", quorum=3), "plan.vote.quorum", "at most 2"),
        (pb.EnsemblePlan(hedge=pb.Hedge(models=["a"], after=Duration(seconds=-1))), "plan.hedge.after", "0 s or more"),
        (judged(weight=0.0), "plan.judgement.judges[0].weight", "must be in (0, 1e6], is 0"),
        (judged(weight=float("nan")), "plan.judgement.judges[0].weight", "is nan"),
        (pb.EnsemblePlan(deadline=Duration(), vote=pb.Vote(models=["a"])), "plan.deadline", "more than 0 s"),
    ],
)
def test_a_wrong_plan_names_the_field(message: pb.EnsemblePlan, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_of(message)
    assert caught.value.field == field
    assert says in caught.value.description


@pytest.mark.parametrize(
    ("message", "plan", "most"),
    [
        (vote("a", "b", "c"), Vote(("a", "b", "c"), 2), 3),
        (vote("a", "b", quorum=1), Vote(("a", "b"), 1), 2),
        (
            pb.EnsemblePlan(hedge=pb.Hedge(models=["a", "b"], after=Duration(nanos=5 * 10**8))),
            Hedge(("a", "b"), 0.5),
            2,
        ),
        (judged(weight=2.0), Judgement(("a", "b"), [Judge("j", 2.0)], 1), 3),
    ],
)
def test_a_plan_with_its_defaults(message: pb.EnsemblePlan, plan: Plan, most: int) -> None:
    assert plan_of(message) == plan
    assert most_requests(plan) == most


def test_a_plan_has_no_more_time_than_its_call() -> None:
    short = pb.EnsemblePlan(deadline=Duration(seconds=2))
    assert [plan_seconds(short, left) for left in (None, 1.0, 5.0)] == [2.0, 1.0, 2.0]
    assert plan_seconds(pb.EnsemblePlan(), None) is None
