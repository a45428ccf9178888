"""What a stream of events adds up to: a text and token ids for each output, what it cost, and its receipt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import OutputFinished, Receipt
from weir.router.v1.router_pb2 import ChatResponse, GenerateResponse, ResumeResponse

Event = ChatResponse | GenerateResponse | ResumeResponse


@dataclass(slots=True)
class Output:
    """One whole output, as its deltas built it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finished: OutputFinished | None = None


@dataclass(slots=True)
class Answer:
    """All that a stream said."""

    outputs: dict[int, Output] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt = field(default_factory=Receipt)

    @property
    def text(self) -> str:
        return self.outputs[0].text if 0 in self.outputs else ""

    def add(self, event: Event) -> None:
        """Take one event in. Asserts that deltas follow one another without gap or overlap."""
        match event.WhichOneof("event"):
            case "delta":
                output = self.outputs.setdefault(event.delta.output_index, Output())
                assert event.delta.first_token_index == len(output.token_ids), "a delta was lost or repeated"
                output.text += event.delta.text
                output.token_ids.extend(event.delta.token_ids)
            case "finished":
                self.outputs.setdefault(event.finished.output_index, Output()).finished = event.finished
            case "usage":
                self.usage = event.usage
            case "receipt":
                self.receipt = event.receipt


async def collect(
    events: AsyncIterator[ChatResponse] | AsyncIterator[GenerateResponse] | AsyncIterator[ResumeResponse],
) -> Answer:
    """Read a stream to its end."""
    answer = Answer()
    async for event in events:
        answer.add(event)
    return answer
