from __future__ import annotations

import pytest

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, Receipt
from weir.router.v1.router_pb2 import ChatResponse
from weir_router.event_writer import EventWriter


class Call:
    def __init__(self) -> None:
        self.written: list[ChatResponse] = []

    async def write(self, message: ChatResponse) -> None:
        self.written.append(message)


async def test_a_client_that_takes_batches_gets_what_is_there_together_as_one_message() -> None:
    call = Call()
    writer = EventWriter(ChatResponse, call.write, batched=True)
    await writer.write([Accepted(request_id="r")])
    await writer.write([Delta(text="x"), OutputFinished(output_index=0), Usage(prompt_tokens=1), Receipt(attempts=1)])
    assert call.written == [ChatResponse(accepted=Accepted(request_id="r"))]
    last = writer.last
    assert [each.WhichOneof("event") for each in (last, *last.more)] == ["delta", "finished", "usage", "receipt"]
    assert last.more[2].receipt.attempts == 1
    assert not any(each.more for each in last.more)


async def test_any_other_client_gets_each_event_as_its_own_and_the_receipt_is_left_to_the_call() -> None:
    call = Call()
    writer = EventWriter(ChatResponse, call.write, batched=False)
    await writer.write([Delta(text="x"), Usage(prompt_tokens=1), Receipt(attempts=1)])
    assert call.written == [ChatResponse(delta=Delta(text="x")), ChatResponse(usage=Usage(prompt_tokens=1))]
    assert writer.last == ChatResponse(receipt=Receipt(attempts=1))


async def test_a_stream_without_a_receipt_has_not_ended_well() -> None:
    writer = EventWriter(ChatResponse, Call().write, batched=True)
    await writer.write([Delta(text="x")])
    with pytest.raises(AssertionError, match="receipt"):
        _ = writer.last
