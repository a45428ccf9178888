"""What a stream's events add up to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from weir.inference.v1.output_pb2 import FINISH_REASON_STOP, Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, Receipt
from weir.router.v1.router_pb2 import GenerateResponse, ResumeResponse
from weir_client.answer import Answer, collect


def delta(output_index: int, first_token_index: int, token_ids: list[int], text: str) -> Delta:
    return Delta(output_index=output_index, first_token_index=first_token_index, token_ids=token_ids, text=text)


async def stream() -> AsyncIterator[GenerateResponse]:
    yield GenerateResponse(accepted=Accepted(request_id="r"))
    yield GenerateResponse(delta=delta(0, 0, [5, 6], "he"))
    yield GenerateResponse(delta=delta(1, 0, [7], "x"))
    yield GenerateResponse(delta=delta(0, 2, [8], "y"))
    yield GenerateResponse(finished=OutputFinished(output_index=0, finish_reason=FINISH_REASON_STOP))
    yield GenerateResponse(usage=Usage(completion_tokens=4))
    yield GenerateResponse(receipt=Receipt(request_id="r"))


async def test_each_output_is_its_own_deltas() -> None:
    answer = await collect(stream())
    assert [(answer.outputs[i].text, answer.outputs[i].token_ids) for i in (0, 1)] == [("hey", [5, 6, 8]), ("x", [7])]
    assert answer.text == "hey"
    first, second = answer.outputs[0].finished, answer.outputs[1].finished
    assert first is not None
    assert (first.finish_reason, second) == (FINISH_REASON_STOP, None)
    assert (answer.usage.completion_tokens, answer.receipt.request_id) == (4, "r")


def test_an_output_may_end_without_a_delta() -> None:
    answer = Answer()
    assert answer.text == ""
    answer.add(ResumeResponse(finished=OutputFinished(output_index=0, finish_reason=FINISH_REASON_STOP)))
    assert (answer.text, answer.outputs[0].token_ids) == ("", [])


@pytest.mark.parametrize("first_token_index", [0, 1, 3])
def test_a_lost_or_repeated_delta_is_noticed(first_token_index: int) -> None:
    answer = Answer()
    answer.add(ResumeResponse(delta=delta(0, 0, [5, 6], "he")))
    with pytest.raises(AssertionError, match="lost or repeated"):
        answer.add(ResumeResponse(delta=delta(0, first_token_index, [9], "y")))
