"""TokenizerService: validate, translate, encode in a thread, translate back."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from weir.kvstore.v1 import block_hash
from weir.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from weir_chassis.clock import Clock
from weir_chassis.deadline import time_left
from weir_chassis.errors import DeadlineExceeded
from weir_chassis.telemetry import current_request
from weir_tokenizer import mapping
from weir_tokenizer.metrics import TokenizerMetrics
from weir_tokenizer.model import TextModel
from weir_tokenizer.registry import Registry
from weir_tokenizer.sandbox import Budget
from weir_tokenizer.work_pool import WorkPool

T = TypeVar("T")

# An id takes four bytes where it is packed, so a list of ids may be as large as a text.
_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the caller gives up, by the clock's monotonic seconds; None when it never does."""

    at: float | None
    clock: Clock

    def check(self) -> None:
        """Raises DeadlineExceeded when nobody waits any more."""
        self.left(math.inf)

    def left(self, limit: float) -> float:
        """Seconds left, at most `limit`. Raises DeadlineExceeded when there are none."""
        left = limit if self.at is None else min(limit, self.at - self.clock.monotonic())
        if left <= 0:
            raise DeadlineExceeded("the deadline passed while the request waited to be encoded")
        return left


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(
        self, registry: Registry, pool: WorkPool, metrics: TokenizerMetrics, clock: Clock, *, render_seconds: float
    ):
        self._registry, self._pool, self._metrics, self._clock = registry, pool, metrics, clock
        self._render_seconds = render_seconds

    async def Tokenize(self, request: tokenizer_pb2.TokenizeRequest, context: Any) -> tokenizer_pb2.TokenizeResponse:
        model = self._registry.find(request.model)
        mapping.check_texts(request, model.limits.max_text_bytes)
        mapping.check_scope(request.hash_scope)
        return await self._in_thread(partial(self._tokenize, model, request), request, context)

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, context: Any
    ) -> tokenizer_pb2.DetokenizeResponse:
        model = self._registry.find(request.model)
        mapping.check_sequences(request, model.vocab_size, model.limits.max_text_bytes // _ID_BYTES)
        return await self._in_thread(partial(self._detokenize, model, request), request, context)

    async def ApplyChatTemplate(
        self, request: tokenizer_pb2.ApplyChatTemplateRequest, context: Any
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        model = self._registry.find(request.model)
        mapping.check_prompt(request.prompt, model.limits.max_text_bytes)
        mapping.check_scope(request.hash_scope)
        return await self._in_thread(partial(self._apply, model, request), request, context)

    async def GetTokenizerInfo(
        self, request: tokenizer_pb2.GetTokenizerInfoRequest, _: Any
    ) -> tokenizer_pb2.GetTokenizerInfoResponse:
        models = self._registry.select(request.model)
        return tokenizer_pb2.GetTokenizerInfoResponse(tokenizers=[mapping.info_of(model) for model in models])

    async def _in_thread(self, job: Callable[[Deadline], T], request: Any, context: Any) -> T:
        left = time_left(context)
        deadline = Deadline(None if left is None else self._clock.monotonic() + left, self._clock)
        caller = current_request()
        owner = caller.request_id if caller else ""
        return await self._pool.run(partial(job, deadline), size_bytes=request.ByteSize(), owner=owner)

    # From here on in a worker thread.

    def _tokenize(
        self, model: TextModel, request: tokenizer_pb2.TokenizeRequest, deadline: Deadline
    ) -> tokenizer_pb2.TokenizeResponse:
        deadline.check()
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        fields = [f"texts[{index}]" for index in range(len(request.texts))]
        encoded = self._encode(model, list(request.texts), fields, special)
        return tokenizer_pb2.TokenizeResponse(
            model_version=mapping.version_of(model.identity),
            prompts=[_prompt(model, token_ids, request.hash_scope) for token_ids in encoded],
        )

    def _detokenize(
        self, model: TextModel, request: tokenizer_pb2.DetokenizeRequest, deadline: Deadline
    ) -> tokenizer_pb2.DetokenizeResponse:
        deadline.check()
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        sequences = [list(sequence.token_ids) for sequence in request.sequences]
        return tokenizer_pb2.DetokenizeResponse(texts=model.decode(sequences, skip_special_tokens=skip))

    def _apply(
        self, model: TextModel, request: tokenizer_pb2.ApplyChatTemplateRequest, deadline: Deadline
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        text = self._render(model, request, deadline)
        response = tokenizer_pb2.ApplyChatTemplateResponse(model_version=mapping.version_of(model.identity))
        if request.render_only:
            response.text = text
            return response
        deadline.check()
        # The template has written every special token that the model expects.
        [token_ids] = self._encode(model, [text], ["prompt"], add_special_tokens=False)
        response.prompt.CopyFrom(_prompt(model, token_ids, request.hash_scope))
        return response

    def _render(self, model: TextModel, request: tokenizer_pb2.ApplyChatTemplateRequest, deadline: Deadline) -> str:
        template = model.template_for(with_tools=bool(request.prompt.tools))
        chat = mapping.chat_of(request.prompt, template.content_format)
        seconds = deadline.left(self._render_seconds)
        with self._metrics.render_seconds.time():
            return model.render(chat, Budget.start(model.limits.max_text_bytes, seconds, self._clock.monotonic))

    def _encode(
        self, model: TextModel, texts: list[str], fields: list[str], add_special_tokens: bool
    ) -> list[array[int]]:
        with self._metrics.encode_seconds.time():
            encoded = model.encode(texts, fields, add_special_tokens=add_special_tokens)
        self._metrics.tokens.inc(sum(map(len, encoded)))
        return encoded


def _prompt(model: TextModel, token_ids: array[int], scope: tokenizer_pb2.HashScope) -> tokenizer_pb2.TokenizedPrompt:
    """The ids with the addresses of their full blocks, if any are wanted."""
    prompt = tokenizer_pb2.TokenizedPrompt(token_ids=token_ids)
    if scope.block_size:
        version = model.identity
        root = block_hash.scope_root(
            block_hash.HashScope(
                version.model, version.revision, version.tokenizer_hash, scope.adapter, scope.tenant_salt
            )
        )
        prompt.block_hashes = block_hash.join_hashes(block_hash.block_hashes(root, token_ids, scope.block_size))
    return prompt
