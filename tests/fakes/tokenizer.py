"""A tokenizer whose tokens are bytes. It keeps the whole contract, for one model and without a pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fakes import bytes_model
from fakes.faults import Crash
from weir.inference.v1.chat_pb2 import ChatPrompt
from weir.inference.v1.model_pb2 import ModelVersion
from weir.kvstore.v1 import block_hash
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceServicer
from weir_chassis.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    PromptTooLong,
    TemplateFailed,
    Unsupported,
    WeirError,
)
from weir_chassis.limits import MAX_JOINED
from weir_chassis.status import to_failure

NAME = pb.DESCRIPTOR.services_by_name["TokenizerService"].full_name


class FakeTokenizer(TokenizerServiceServicer):
    """`calls` counts what was encoded; `error` is raised instead; `delay_seconds` is how long one takes.

    `streams` counts those that were opened, and `live` the asks that are open on them.
    """

    def __init__(self, version: ModelVersion = bytes_model.VERSION, *, has_chat_template: bool = True):
        self.version, self.has_chat_template = version, has_chat_template
        self.max_prompt_tokens = bytes_model.MAX_MODEL_LEN - 1
        # Unset: it is older than the stream.
        self.has_encode = True
        self.calls = self.streams = 0
        self._asks: list[_Asks] = []
        self.error: WeirError | None = None
        self.delay_seconds = 0.0
        # While it is not set, nothing is answered: a worker that hangs.
        self.running = asyncio.Event()
        self.running.set()
        self.crash = Crash()
        self.scopes: list[pb.HashScope] = []

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        await self._enter(request.model)
        if not 1 <= len(request.texts) <= 256:
            raise InvalidArgument("texts", f"must have 1 to 256 entries, has {len(request.texts)}")
        if sum(len(text.encode()) for text in request.texts) > bytes_model.MAX_TEXT_BYTES:
            raise InvalidArgument("texts", f"must be at most {bytes_model.MAX_TEXT_BYTES} bytes together")
        prompts = [self._prompt("texts", text, request.hash_scope) for text in request.texts]
        return pb.TokenizeResponse(model_version=self.version, prompts=prompts)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        await self._enter(request.model)
        return pb.DetokenizeResponse(texts=[_decode(ids.token_ids) for ids in request.sequences])

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Any
    ) -> pb.ApplyChatTemplateResponse:
        await self._enter(request.model)
        text = _render(request.prompt)
        if request.render_only:
            return pb.ApplyChatTemplateResponse(model_version=self.version, text=text)
        prompt = self._prompt("prompt", text, request.hash_scope)
        return pb.ApplyChatTemplateResponse(model_version=self.version, prompt=prompt)

    async def Encode(
        self, request_iterator: AsyncIterator[pb.EncodeRequest], context: Any
    ) -> AsyncIterator[pb.EncodeResponse]:
        self.crash.check()
        self.streams += 1
        self._asks.append(asks := _Asks(self, context))
        reader = asyncio.create_task(asks.read(self.crash.guard(request_iterator)))
        try:
            while (answers := await asks.next()) is not None:
                yield pb.EncodeResponse(answers=answers)
        finally:
            self._asks.remove(asks)
            await asks.close(reader)

    @property
    def live(self) -> int:
        return sum(map(len, self._asks))

    async def GetTokenizerInfo(self, request: pb.GetTokenizerInfoRequest, context: Any) -> pb.GetTokenizerInfoResponse:
        self.crash.check()
        await self.running.wait()
        self._check_model(request.model or self.version.model)
        info = pb.TokenizerInfo(
            model_version=self.version,
            vocab_size=bytes_model.VOCAB_SIZE,
            max_prompt_tokens=self.max_prompt_tokens,
            max_text_bytes=bytes_model.MAX_TEXT_BYTES,
            has_chat_template=self.has_chat_template,
        )
        return pb.GetTokenizerInfoResponse(tokenizers=[info], has_encode=self.has_encode)

    async def _enter(self, model: str) -> None:
        self.crash.check()
        self.calls += 1
        if self.error is not None:
            raise self.error
        self._check_model(model)
        await asyncio.sleep(self.delay_seconds)
        await self.running.wait()

    def _check_model(self, model: str) -> None:
        if model != self.version.model:
            raise ModelNotFound(model, [self.version.model])

    def _prompt(self, field: str, text: str, scope: pb.HashScope) -> pb.TokenizedPrompt:
        self.scopes.append(scope)
        token_ids, limit = bytes_model.encode(text), self.max_prompt_tokens
        if len(token_ids) > limit:
            raise PromptTooLong(field, len(token_ids), limit)
        return pb.TokenizedPrompt(token_ids=token_ids, block_hashes=self._hashes(token_ids, scope))

    def _hashes(self, token_ids: list[int], scope: pb.HashScope) -> bytes:
        if not scope.block_size:
            return b""
        version = self.version
        root = block_hash.scope_root(
            block_hash.HashScope(
                version.model, version.revision, version.tokenizer_hash, scope.adapter, scope.tenant_salt
            )
        )
        return block_hash.join_hashes(block_hash.block_hashes(root, token_ids, scope.block_size))


class _Asks:
    """One caller's, a task each. All that is answered when the caller is written to is one message."""

    def __init__(self, service: FakeTokenizer, context: Any) -> None:
        self._service, self._context = service, context
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._answers: list[pb.Answer] = []
        self._wake = asyncio.Event()
        self._ended: BaseException | None = None
        self._half_closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def read(self, requests: AsyncIterator[pb.EncodeRequest]) -> None:
        try:
            async for request in requests:
                for field in ("asks", "withdrawn_handles"):
                    if (joined := len(getattr(request, field))) > MAX_JOINED:
                        raise InvalidArgument(field, f"{joined} in one message, the limit is {MAX_JOINED}")
                for ask in request.asks:
                    self._begin(ask)
                for handle in request.withdrawn_handles:
                    if (task := self._tasks.pop(handle, None)) is not None:
                        task.cancel()
        except Exception as error:
            self._ended = error
        self._half_closed = True
        self._wake.set()

    async def next(self) -> list[pb.Answer] | None:
        """What is there to be written; None when there will be no more."""
        while not self._answers:
            if self._ended is not None:
                raise self._ended
            if self._half_closed and not self._tasks:
                return None
            self._wake.clear()
            await self._wake.wait()
        answers, self._answers = self._answers, []
        for answer in answers:
            self._tasks.pop(answer.handle, None)
        return answers

    async def close(self, reader: asyncio.Task[None]) -> None:
        tasks = [reader, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, ask: pb.Ask) -> None:
        if ask.handle in self._tasks:
            error = AlreadyExists(str(ask.handle), "the handle is open")
            self._add(pb.Answer(handle=ask.handle, failure=to_failure(error)))
        else:
            self._tasks[ask.handle] = asyncio.create_task(self._work(ask))

    async def _work(self, ask: pb.Ask) -> None:
        answer = pb.Answer(handle=ask.handle)
        try:
            async with asyncio.timeout(_left_seconds(ask)):
                if ask.HasField("tokenize"):
                    answer.tokenized.CopyFrom(await self._service.Tokenize(ask.tokenize, self._context))
                elif ask.HasField("apply_chat_template"):
                    request = ask.apply_chat_template
                    answer.applied.CopyFrom(await self._service.ApplyChatTemplate(request, self._context))
                else:
                    raise InvalidArgument("request", "missing")
        except TimeoutError:
            answer.failure.CopyFrom(to_failure(DeadlineExceeded("the ask's time is over")))
        except WeirError as error:
            answer.failure.CopyFrom(to_failure(error))
        self._add(answer)

    def _add(self, answer: pb.Answer) -> None:
        self._answers.append(answer)
        self._wake.set()


def _left_seconds(ask: pb.Ask) -> float | None:
    return ask.time_left.ToTimedelta().total_seconds() if ask.HasField("time_left") else None


def _render(prompt: ChatPrompt) -> str:
    """The text of the messages, one after another: what the model answers is what was said."""
    texts = []
    for index, message in enumerate(prompt.messages):
        if message.role not in ("system", "user", "assistant", "tool"):
            raise TemplateFailed("prompt", f"unknown role {message.role!r}")
        for part in message.content:
            if part.HasField("image"):
                raise Unsupported(f"messages[{index}]: no model here takes images")
            texts.append(part.text)
    return "".join(texts)


def _decode(token_ids: Iterable[int]) -> str:
    return b"".join(map(bytes_model.token_bytes, token_ids)).decode(errors="replace")
