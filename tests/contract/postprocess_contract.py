"""What any PostprocessService does, as checks that take a stub.

The service under test serves `MODEL`, whose tokenizer `write_tokenizer` writes: one token for each byte, its id the
byte's value, and one special token, `END`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch
from weir.inference.v1.token_bytes import BYTE_OF_CHARACTER
from weir.postprocess.v1.postprocess_pb2 import (
    Finish,
    Open,
    OpenedOutput,
    PostprocessOutputFinished,
    PostprocessRequest,
    PostprocessResponse,
)
from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceStub
from weir_chassis.errors import reason_name
from weir_chassis.status import from_failure, from_rpc_error

if TYPE_CHECKING:
    from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceAsyncStub as Stub

MODEL = "bytes"
END = 256
STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH
# Far more than an answer takes; only a service that hangs meets it.
_TIMEOUT_SECONDS = 20.0

Check = Callable[["Stub"], Awaitable[None]]


def write_tokenizer(directory: Path) -> Path:
    tokenizer = Tokenizer(models.BPE(vocab=dict(BYTE_OF_CHARACTER), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def connect(channel: grpc.aio.Channel) -> Stub:
    return PostprocessServiceStub(channel)


class Caller:
    """One stream, and what came back on it for each output."""

    def __init__(self, stub: Stub):
        self.call = stub.Postprocess(timeout=_TIMEOUT_SECONDS)
        self.text: dict[tuple[int, int], str] = {}
        self.token_ids: dict[tuple[int, int], list[int]] = {}
        self.first_token_index: dict[tuple[int, int], int] = {}
        self.finished: list[PostprocessOutputFinished] = []
        self.failed: dict[int, str] = {}

    async def send(self, **fields: object) -> None:
        await self.call.write(PostprocessRequest(**fields))  # type: ignore[arg-type]  # fields of PostprocessRequest

    async def read(self) -> PostprocessResponse:
        response = await self.call.read()
        assert isinstance(response, PostprocessResponse), "the stream ended"
        for handle, delta in zip(response.handles, response.deltas, strict=True):
            key = (handle, delta.output_index)
            known = self.token_ids.setdefault(key, [])
            first = self.first_token_index.setdefault(key, delta.first_token_index)
            assert delta.first_token_index == first + len(known)
            known += delta.token_ids
            self.text[key] = self.text.get(key, "") + delta.text
        self.finished += response.finished
        for row in response.failed:
            self.failed[row.handle] = reason_name(from_failure(row.failure).reason)
        return response

    async def ask(self, **fields: object) -> PostprocessResponse:
        await self.send(**fields)
        return await self.read()

    async def end(self) -> None:
        """Says that there is no more, and sees the stream end."""
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


@asynccontextmanager
async def calling(stub: Stub) -> AsyncIterator[Caller]:
    caller = Caller(stub)
    try:
        yield caller
    finally:
        caller.call.cancel()


def opened(handle: int, n: int = 1, **fields: object) -> Open:
    return Open(handle=handle, model=MODEL, n=n, **fields)  # type: ignore[arg-type]  # fields of Open


def row(handle: int, token_ids: Sequence[int] | bytes, first: int = 0, output_index: int = 0) -> TokenBatch:
    return rows((handle, output_index, first, list(token_ids)))


def rows(*given: tuple[int, int, int, Sequence[int]], logprobs: Sequence[RowLogprobs] = ()) -> TokenBatch:
    return TokenBatch(
        handles=[handle for handle, _, _, _ in given],
        output_indexes=[index for _, index, _, _ in given],
        first_token_indexes=[first for _, _, first, _ in given],
        token_counts=[len(token_ids) for _, _, _, token_ids in given],
        token_ids=[token_id for _, _, _, token_ids in given for token_id in token_ids],
        logprobs=logprobs,
    )


async def check_text_comes_with_its_tokens(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.ask(opens=[opened(1), opened(2, n=2)], tokens=rows((1, 0, 0, b"hi"), (2, 1, 0, b"yo")))
        assert caller.text == {(1, 0): "hi", (2, 1): "yo"}
        assert caller.token_ids == {(1, 0): list(b"hi"), (2, 1): list(b"yo")}
        await caller.end()


async def check_a_character_is_held_until_it_is_whole(stub: Stub) -> None:
    async with calling(stub) as caller:
        first, *rest = "é".encode()
        await caller.send(opens=[opened(1)], tokens=row(1, [first]))
        response = await caller.ask(tokens=row(1, rest, first=1))
        assert (response.deltas[0].text, list(response.deltas[0].token_ids)) == ("é", [first, *rest])


async def check_a_stop_string_across_messages(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.ask(opens=[opened(1, stop=["END"])], tokens=row(1, b"the E"))
        assert caller.text == {(1, 0): "the "}
        await caller.ask(tokens=row(1, b"ND of it", first=5))
        assert caller.text == {(1, 0): "the "}
        assert caller.token_ids == {(1, 0): list(b"the END")}
        assert caller.finished == [PostprocessOutputFinished(handle=1, finish_reason=STOP, stop="END")]


async def check_a_stop_string_that_stays_in_the_text(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.ask(opens=[opened(1, stop=["ND"], include_stop_in_output=True)], tokens=row(1, b"the END of it"))
        assert caller.text == {(1, 0): "the END"}


async def check_a_finish_releases_what_is_held(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.send(opens=[opened(1, stop=["END"])], tokens=row(1, b"EN\xc3"))
        await caller.ask(finishes=[Finish(handle=1, finish_reason=LENGTH)])
        assert caller.text == {(1, 0): "EN\N{REPLACEMENT CHARACTER}"}
        assert caller.token_ids == {(1, 0): list(b"EN\xc3")}
        assert caller.finished == [PostprocessOutputFinished(handle=1, finish_reason=LENGTH)]


async def check_special_tokens_are_left_out_unless_wanted(stub: Stub) -> None:
    async with calling(stub) as caller:
        opens = [opened(1), opened(2, skip_special_tokens=False)]
        await caller.ask(opens=opens, tokens=rows((1, 0, 0, [*b"a", END]), (2, 0, 0, [*b"a", END])))
        assert caller.text == {(1, 0): "a", (2, 0): "a<|end|>"}
        assert caller.token_ids[1, 0] == caller.token_ids[2, 0]


async def check_a_stop_token_is_counted_without_text(stub: Stub) -> None:
    async with calling(stub) as caller:
        finish = Finish(handle=1, finish_reason=STOP, ends_with_stop_token=True)
        await caller.ask(opens=[opened(1)], tokens=row(1, b"ab"), finishes=[finish])
        assert caller.text == {(1, 0): "a"}
        assert caller.token_ids == {(1, 0): list(b"ab")}


async def check_an_id_that_the_tokenizer_does_not_know_is_counted_without_text(stub: Stub) -> None:
    async with calling(stub) as caller:
        padding = [END + 1, 2**31 - 1]
        await caller.ask(opens=[opened(1)], tokens=row(1, [*b"a", *padding, *b"b"]))
        assert caller.text == {(1, 0): "ab"}
        assert caller.token_ids == {(1, 0): [*b"a", *padding, *b"b"]}


async def check_resumed_outputs_begin_after_their_tokens(stub: Stub) -> None:
    async with calling(stub) as caller:
        resumed = [OpenedOutput(token_ids=b"so far")]
        response = await caller.ask(opens=[opened(1, resumed_outputs=resumed)], tokens=row(1, b", so good", first=6))
        assert (response.deltas[0].first_token_index, response.deltas[0].text) == (6, ", so good")


async def check_logprobs_have_the_tokens_bytes(stub: Stub) -> None:
    async with calling(stub) as caller:
        logprobs = [RowLogprobs(logprobs=[-1, -2], top_count=1, top_token_ids=[65, END], top_logprobs=[-1, -0.5])]
        response = await caller.ask(opens=[opened(1)], tokens=rows((1, 0, 0, "é".encode()), logprobs=logprobs))
        entries = response.deltas[0].logprobs
        assert [entry.token for entry in entries] == [b"\xc3", b"\xa9"]
        assert [entry.top[0].token for entry in entries] == [b"A", b"<|end|>"]


async def check_wrong_requests_fail_alone(stub: Stub) -> None:
    async with calling(stub) as caller:
        opens = [
            opened(1),
            opened(1),
            opened(2, n=17),
            opened(3, stop=[""]),
            Open(handle=4, model="no", n=1),
            opened(5),
        ]
        await caller.ask(opens=opens, tokens=rows((1, 0, 0, b"a"), (5, 0, 0, [2**31])))
        assert caller.failed == {
            1: "ALREADY_EXISTS",
            2: "INVALID_ARGUMENT",
            3: "INVALID_ARGUMENT",
            4: "MODEL_NOT_FOUND",
            5: "INVALID_ARGUMENT",
        }
        assert caller.text == {(1, 0): "a"}


async def check_a_closed_request_says_nothing_more(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.send(opens=[opened(1), opened(2)], tokens=row(1, b"a"), closed_handles=[1, 9])
        await caller.send(tokens=row(1, b"b", first=1), finishes=[Finish(handle=1, finish_reason=STOP)])
        response = await caller.ask(tokens=row(2, b"c"))
        assert list(response.handles) == [2]


async def check_late_tokens_of_a_finished_output_are_ignored(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.ask(opens=[opened(1, stop=["b"]), opened(2)], tokens=row(1, b"ab"))
        await caller.send(tokens=row(1, b"c", first=2), finishes=[Finish(handle=1, finish_reason=STOP)])
        response = await caller.ask(tokens=row(2, b"c"))
        assert list(response.handles) == [2]
        assert not response.failed


async def check_a_long_resume_is_no_different(stub: Stub) -> None:
    async with calling(stub) as caller:
        resumed = [OpenedOutput(token_ids=b"x" * 50_000)]
        await caller.ask(opens=[opened(1, resumed_outputs=resumed)], tokens=row(1, b"y", first=50_000))
        assert caller.text == {(1, 0): "y"}


async def check_a_batch_whose_columns_do_not_fit_ends_the_stream(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.send(opens=[opened(1)], tokens=TokenBatch(handles=[1]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.call.read()
        assert reason_name(from_rpc_error(refused.value).reason) == "INVALID_ARGUMENT"


async def check_streams_know_nothing_of_each_other(stub: Stub) -> None:
    async with calling(stub) as one, calling(stub) as other:
        await asyncio.gather(
            one.ask(opens=[opened(1)], tokens=row(1, b"a")), other.ask(opens=[opened(1)], tokens=row(1, b"b"))
        )
        assert (one.text, other.text) == ({(1, 0): "a"}, {(1, 0): "b"})


async def check_a_stream_may_end_with_requests_open(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.ask(opens=[opened(1), opened(2, stop=["ab"])], tokens=rows((1, 0, 0, b"a"), (2, 0, 0, b"a")))
        await caller.end()


CHECKS: Sequence[Check] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
