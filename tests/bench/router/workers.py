"""Mock workers behind a Weir router, in one process: they keep the contracts and cost as little as Python can.

python -m bench.router.workers        prints its addresses as JSON: two executors, a tokenizer, a postprocess service

Every prompt has the same tokens, every answer the clock's (`clock_token.py`), one step of an executor is one message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2_grpc

from bench.router import clock_token
from bench.router.pace import Drawing, DueTokens, read_pace
from weir.executor.v1 import executor_pb2, executor_pb2_grpc
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, TokenBatch, Usage
from weir.inference.v1.stream_pb2 import Delta
from weir.postprocess.v1 import postprocess_pb2, postprocess_pb2_grpc
from weir.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from weir_chassis.health import Health
from weir_chassis.limits import server_options

MODEL = "mock"
PROMPT_TOKENS, BLOCK_SIZE = 256, 16
_VERSION = ModelVersion(model=MODEL, revision="r1", tokenizer_hash="0" * 32)
_MAX_STREAMS = 4096


class MockTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(self) -> None:
        hashes = bytes(range(256))[: PROMPT_TOKENS // BLOCK_SIZE * 16]
        self._prompt = tokenizer_pb2.TokenizedPrompt(token_ids=range(PROMPT_TOKENS), block_hashes=hashes)

    async def GetTokenizerInfo(self, request: Any, context: Any) -> tokenizer_pb2.GetTokenizerInfoResponse:
        info = tokenizer_pb2.TokenizerInfo(model_version=_VERSION, vocab_size=1 << 20, has_chat_template=True)
        return tokenizer_pb2.GetTokenizerInfoResponse(tokenizers=[info], has_encode=True)

    async def Encode(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        while (message := await context.read()) is not grpc.aio.EOF:
            if message.asks:
                await context.write(tokenizer_pb2.EncodeResponse(answers=map(self._answer, message.asks)))

    def _answer(self, ask: tokenizer_pb2.Ask) -> tokenizer_pb2.Answer:
        answer = tokenizer_pb2.Answer(handle=ask.handle)
        if ask.HasField("tokenize"):
            answer.tokenized.model_version.CopyFrom(_VERSION)
            answer.tokenized.prompts.extend([self._prompt] * len(ask.tokenize.texts))
        else:
            answer.applied.model_version.CopyFrom(_VERSION)
            answer.applied.prompt.CopyFrom(self._prompt)
        return answer


class MockPostprocess(postprocess_pb2_grpc.PostprocessServiceServicer):
    """One delta for each output, whose text is its tokens'; nothing is held back."""

    async def Postprocess(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        while (message := await context.read()) is not grpc.aio.EOF:
            response = _texts(message.tokens)
            for finish in message.finishes:
                response.finished.add(
                    handle=finish.handle, output_index=finish.output_index, finish_reason=finish.finish_reason
                )
            if response.handles or response.finished:
                await context.write(response)


def _texts(batch: TokenBatch) -> postprocess_pb2.PostprocessResponse:
    deltas: dict[int, Delta] = {}
    token_ids, start = list(batch.token_ids), 0
    for handle, first, count in zip(batch.handles, batch.first_token_indexes, batch.token_counts, strict=True):
        delta = deltas.get(handle)
        if delta is None:
            delta = deltas[handle] = Delta(first_token_index=first)
        delta.token_ids.extend(token_ids[start : start + count])
        delta.text += clock_token.text(token_ids[start]) * count  # they were drawn together
        start += count
    return postprocess_pb2.PostprocessResponse(handles=deltas, deltas=deltas.values())


class MockExecutor(executor_pb2_grpc.ExecutorServiceServicer):
    async def GetModelInfo(self, request: Any, context: Any) -> executor_pb2.GetModelInfoResponse:
        return executor_pb2.GetModelInfoResponse(
            model_version=_VERSION,
            engine="mock",
            vocab_size=1 << 20,
            max_model_len=1 << 17,
            block_size=BLOCK_SIZE,
            takes_more=True,
        )

    async def GetLoad(self, request: Any, context: Any) -> executor_pb2.GetLoadResponse:
        return executor_pb2.GetLoadResponse(epoch=1)

    async def Generate(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        steps = _Steps()
        reader = asyncio.create_task(steps.read(context))
        try:
            while True:
                await context.write(await steps.next())
        finally:
            reader.cancel()


class _Steps:
    """One caller's requests. A request is accepted in one step and gets its first token in the next."""

    def __init__(self) -> None:
        self._new: dict[int, int] = {}  # handle → tokens wanted
        self._drawings: dict[int, Drawing] = {}
        self._handles: dict[Drawing, int] = {}
        self._due = DueTokens()
        self._something_new = asyncio.Event()
        self._ended: list[int] = []
        self._pace = read_pace()
        self._next_step = 0.0

    async def read(self, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            for command in (message, *message.more):
                self._do(command)
            self._something_new.set()

    def _do(self, command: executor_pb2.GenerateRequest) -> None:
        if command.HasField("submit"):
            self._new[command.submit.handle] = command.submit.stopping.max_tokens
        elif not command.abort.HasField("output_index"):
            self._abort(command.abort.handle)

    async def next(self) -> executor_pb2.GenerateResponse:
        """The next step, when there is one to make."""
        while True:
            await self._wait()
            step = self._step(time.monotonic())
            if step.ByteSize():
                self._next_step = time.monotonic() + self._pace.step_seconds
                return step

    async def _wait(self) -> None:
        while not self._new:
            left = self._due.seconds_left(time.monotonic())
            if left == 0.0:
                break
            self._something_new.clear()
            try:
                async with asyncio.timeout(left):
                    await self._something_new.wait()
            except TimeoutError:
                break
        await asyncio.sleep(max(0.0, self._next_step - time.monotonic()))

    def _step(self, now: float) -> executor_pb2.GenerateResponse:
        drawings = self._due.take(now)
        step = executor_pb2.GenerateResponse(accepted_handles=self._new)
        if drawings:
            self._add_tokens(step, drawings)
        for handle in self._ended:
            step.ended.add(handle=handle)
        self._ended.clear()
        self._begin(now)
        return step

    def _begin(self, now: float) -> None:
        if self._new:
            self._pace = read_pace()
        for handle, count in self._new.items():
            drawing = Drawing(count, self._pace.period, now + self._pace.step_seconds)
            self._drawings[handle], self._handles[drawing] = drawing, handle
            self._due.add(drawing)
        self._new.clear()

    def _add_tokens(self, step: executor_pb2.GenerateResponse, drawings: Sequence[tuple[Drawing, int]]) -> None:
        handles, counts = [self._handles[drawing] for drawing, _ in drawings], [count for _, count in drawings]
        step.tokens.handles.extend(handles)
        step.tokens.output_indexes.extend([0] * len(handles))
        step.tokens.first_token_indexes.extend([drawing.index - count for drawing, count in drawings])
        step.tokens.token_counts.extend(counts)
        step.tokens.token_ids.extend([clock_token.now()] * sum(counts))
        for handle, (drawing, _) in zip(handles, drawings, strict=True):
            if not drawing.left:
                step.finished.add(handle=handle, finish_reason=FinishReason.FINISH_REASON_LENGTH)
                step.ended.add(handle=handle, usage=Usage(prompt_tokens=PROMPT_TOKENS))
                self._forget(handle)

    def _abort(self, handle: int) -> None:
        if self._new.pop(handle, None) is not None or handle in self._drawings:
            self._ended.append(handle)
        if (drawing := self._drawings.get(handle)) is not None:
            drawing.left = 0
            self._forget(handle)

    def _forget(self, handle: int) -> None:
        del self._handles[self._drawings.pop(handle)]


async def _main() -> None:
    server = grpc.aio.server(options=server_options(_MAX_STREAMS))
    health = Health()
    # What a router does not call on this way is answered with UNIMPLEMENTED.
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(MockExecutor(), server)  # type: ignore[abstract]
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(MockTokenizer(), server)  # type: ignore[abstract]
    postprocess_pb2_grpc.add_PostprocessServiceServicer_to_server(MockPostprocess(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for module, name in (
        (executor_pb2, "ExecutorService"),
        (tokenizer_pb2, "TokenizerService"),
        (postprocess_pb2, "PostprocessService"),
    ):
        health.set(module.DESCRIPTOR.services_by_name[name].full_name, True)
    addresses = [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}" for _ in range(2)]
    await server.start()
    told = {"executors": addresses, "tokenizers": addresses[:1], "postprocessors": addresses[:1]}
    print(json.dumps(told), flush=True)  # to whoever started it
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_main())
