from __future__ import annotations

import pytest

from weir.executor.v1.executor_pb2 import ResumedOutput
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_chassis.clock import SystemClock
from weir_router.fleet.model_version import Version
from weir_router.journey import Journey
from weir_router.regions import NO_CLIENT
from weir_router.request import ClientRequest, EncodedPrompt, TextPrompt
from weir_router.worker_messages import opening_of, submit_of

PROMPT = EncodedPrompt(Version("m", "r1", "t"), [1, 2, 3], b"h" * 16, 2, "adapter", "salt")


def asked(stopping: StoppingConditions) -> ClientRequest:
    return ClientRequest(
        request_id="r",
        model="m",
        prompt=TextPrompt("hello", None),
        sampling=SamplingParameters(seed=1, n=2),
        stopping=stopping,
        priority=3,
        tenant="acme",
        residency=NO_CLIENT,
        adapter="a",
        skip_special_tokens=False,
    )


def journey(stopping: StoppingConditions, left_seconds: float | None = None) -> Journey:
    clock = SystemClock()
    now = clock.monotonic()
    return Journey(asked(stopping), clock, now, None if left_seconds is None else now + left_seconds)


@pytest.mark.parametrize(
    "stopping",
    [
        StoppingConditions(max_tokens=5, stop_token_ids=[7]),
        StoppingConditions(max_tokens=5, stop_token_ids=[7], stop=["x"], include_stop_in_output=True),
    ],
)
def test_an_executor_is_told_all_but_stop_strings(stopping: StoppingConditions) -> None:
    before, resumed = stopping.SerializeToString(), [ResumedOutput(output_index=1, token_ids=[9])]
    submit = submit_of(journey(stopping), PROMPT, b"other", handle=4, resumed=resumed, hand_off=True)
    assert submit.stopping == StoppingConditions(max_tokens=5, stop_token_ids=[7])
    assert stopping.SerializeToString() == before, "the client's own message stays as it is"
    assert (submit.handle, submit.request_id, submit.priority, submit.tenant) == (4, "r", 3, "acme")
    assert (list(submit.token_ids), submit.block_hashes) == ([1, 2, 3], b"other")
    assert (submit.adapter, submit.tenant_salt, submit.hand_off) == ("adapter", "salt", True)
    assert (submit.model_version.revision, submit.sampling.n) == ("r1", 2)
    assert list(submit.resumed_outputs) == resumed


def test_an_executor_is_told_what_time_is_left() -> None:
    timed = submit_of(journey(StoppingConditions(), 5.0), PROMPT, b"", handle=1, resumed=(), hand_off=False)
    assert 0 < timed.time_left.ToTimedelta().total_seconds() <= 5
    endless = submit_of(journey(StoppingConditions()), PROMPT, b"", handle=1, resumed=(), hand_off=False)
    assert not endless.HasField("time_left")


def test_a_postprocess_replica_is_told_what_becomes_text() -> None:
    opening = opening_of(asked(StoppingConditions(stop=["x"], include_stop_in_output=True)), "m", 4)
    assert (opening.handle, opening.model, opening.n) == (4, "m", 2)
    assert (list(opening.stop), opening.include_stop_in_output) == (["x"], True)
    assert opening.HasField("skip_special_tokens")
    assert not opening.skip_special_tokens
