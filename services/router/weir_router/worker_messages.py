"""A request as its workers are told of it: what an executor is to draw, and how a postprocess replica makes text."""

from __future__ import annotations

from collections.abc import Iterable

from weir.executor.v1.executor_pb2 import ResumedOutput, Submit
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.postprocess.v1.postprocess_pb2 import Open
from weir_chassis.durations import duration
from weir_router.journey import Journey
from weir_router.request import ClientRequest, EncodedPrompt


def submit_of(
    journey: Journey,
    prompt: EncodedPrompt,
    block_hashes: bytes,
    *,
    handle: int,
    resumed: Iterable[ResumedOutput],
    hand_off: bool,
) -> Submit:
    """`block_hashes`: of the executor's own blocks. `resumed`: what has been drawn. `hand_off`: another one goes on."""
    request, left = journey.request, journey.left_seconds()
    return Submit(
        handle=handle,
        request_id=request.request_id,
        model_version=prompt.version.message(),
        token_ids=prompt.token_ids,
        block_hashes=block_hashes,
        adapter=prompt.adapter,
        tenant_salt=prompt.tenant_salt,
        sampling=request.sampling,
        stopping=_without_strings(request.stopping),
        priority=request.priority,
        tenant=request.tenant,
        time_left=None if left is None else duration(left),
        resumed_outputs=resumed,
        hand_off=hand_off,
    )


def opening_of(request: ClientRequest, model: str, handle: int) -> Open:
    return Open(
        handle=handle,
        model=model,
        n=request.n,
        stop=request.stopping.stop,
        include_stop_in_output=request.stopping.include_stop_in_output,
        skip_special_tokens=request.skip_special_tokens,
    )


def _without_strings(stopping: StoppingConditions) -> StoppingConditions:
    """Stop strings are postprocess's business; an executor refuses them."""
    if not stopping.stop and not stopping.include_stop_in_output:
        return stopping
    tokens_only = StoppingConditions()
    tokens_only.CopyFrom(stopping)
    tokens_only.ClearField("stop")
    tokens_only.ClearField("include_stop_in_output")
    return tokens_only
