"""What is asked of a model, checked, done in a thread and answered: the same whichever door it came through.

servicer   one call each ──┐
                           ├─▶ Encoder ─▶ WorkPool ─▶ TextModel
ask_stream many on one ────┘
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from weir.kvstore.v1 import block_hash
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir_chassis.clock import Clock
from weir_chassis.limits import MAX_MESSAGE_BYTES
from weir_chassis.telemetry import current_request
from weir_tokenizer import mapping
from weir_tokenizer.deadline import Deadline
from weir_tokenizer.metrics import TokenizerMetrics
from weir_tokenizer.model import TextModel
from weir_tokenizer.registry import Registry
from weir_tokenizer.sandbox import Budget
from weir_tokenizer.work_pool import WorkPool

T = TypeVar("T")

# An id takes four bytes where it is packed, so a list of ids may be as large as a text.
_ID_BYTES: Final = 4
# With room for what a stream wraps an answer in: one that does not fit a message would end the stream of all.
_MAX_ANSWER_BYTES: Final = MAX_MESSAGE_BYTES - 1024


class Encoder:
    """`left_seconds`: until whoever asks gives up; None when it never does. Work is its owner's who is bound as the
    current request."""

    def __init__(
        self, registry: Registry, pool: WorkPool, metrics: TokenizerMetrics, clock: Clock, *, render_seconds: float
    ):
        self._registry, self._pool, self._metrics, self._clock = registry, pool, metrics, clock
        self._render_seconds = render_seconds

    async def tokenize(self, request: pb.TokenizeRequest, left_seconds: float | None) -> pb.TokenizeResponse:
        model = self._registry.find(request.model)
        mapping.check_texts(request, model.limits.max_text_bytes)
        mapping.check_scope(request.hash_scope)
        return await self._in_thread(partial(self._tokenize, model, request), request.ByteSize(), left_seconds)

    async def detokenize(self, request: pb.DetokenizeRequest, left_seconds: float | None) -> pb.DetokenizeResponse:
        model = self._registry.find(request.model)
        mapping.check_sequences(request, model.vocab_size, model.limits.max_text_bytes // _ID_BYTES)
        return await self._in_thread(partial(self._detokenize, model, request), request.ByteSize(), left_seconds)

    async def apply_chat_template(
        self, request: pb.ApplyChatTemplateRequest, left_seconds: float | None
    ) -> pb.ApplyChatTemplateResponse:
        model = self._registry.find(request.model)
        mapping.check_prompt(request.prompt, model.limits.max_text_bytes)
        mapping.check_scope(request.hash_scope)
        return await self._in_thread(partial(self._apply, model, request), request.ByteSize(), left_seconds)

    def info(self, model: str) -> list[pb.TokenizerInfo]:
        """Of this model, or of all for an empty name."""
        return [mapping.info_of(each) for each in self._registry.select(model)]

    async def _in_thread(self, job: Callable[[Deadline], T], size_bytes: int, left_seconds: float | None) -> T:
        deadline, caller = Deadline.after(left_seconds, self._clock), current_request()
        owner = caller.request_id if caller else ""
        return await self._pool.run(partial(job, deadline), size_bytes=size_bytes, owner=owner)

    # From here on in a worker thread.

    def _tokenize(self, model: TextModel, request: pb.TokenizeRequest, deadline: Deadline) -> pb.TokenizeResponse:
        deadline.check()
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        fields = [f"texts[{index}]" for index in range(len(request.texts))]
        encoded = self._encode(model, list(request.texts), fields, special)
        response = pb.TokenizeResponse(
            model_version=mapping.version_of(model.identity),
            prompts=[_prompt(model, token_ids, request.hash_scope) for token_ids in encoded],
        )
        mapping.check_answer("texts", response.ByteSize(), _MAX_ANSWER_BYTES)
        return response

    def _detokenize(self, model: TextModel, request: pb.DetokenizeRequest, deadline: Deadline) -> pb.DetokenizeResponse:
        deadline.check()
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        sequences = [list(sequence.token_ids) for sequence in request.sequences]
        return pb.DetokenizeResponse(texts=model.decode(sequences, skip_special_tokens=skip))

    def _apply(
        self, model: TextModel, request: pb.ApplyChatTemplateRequest, deadline: Deadline
    ) -> pb.ApplyChatTemplateResponse:
        text = self._render(model, request, deadline)
        response = pb.ApplyChatTemplateResponse(model_version=mapping.version_of(model.identity))
        if request.render_only:
            response.text = text
            return response
        deadline.check()
        # The template has written every special token that the model expects.
        [token_ids] = self._encode(model, [text], ["prompt"], add_special_tokens=False)
        response.prompt.CopyFrom(_prompt(model, token_ids, request.hash_scope))
        mapping.check_answer("prompt", response.ByteSize(), _MAX_ANSWER_BYTES)
        return response

    def _render(self, model: TextModel, request: pb.ApplyChatTemplateRequest, deadline: Deadline) -> str:
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


def _prompt(model: TextModel, token_ids: array[int], scope: pb.HashScope) -> pb.TokenizedPrompt:
    """The ids with the addresses of their full blocks, if any are wanted."""
    prompt = pb.TokenizedPrompt(token_ids=token_ids)
    if scope.block_size:
        version = model.identity
        root = block_hash.scope_root(
            block_hash.HashScope(
                version.model, version.revision, version.tokenizer_hash, scope.adapter, scope.tenant_salt
            )
        )
        prompt.block_hashes = block_hash.join_hashes(block_hash.block_hashes(root, token_ids, scope.block_size))
    return prompt
