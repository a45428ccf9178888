"""A prompt of any kind becomes token ids, their block hashes, and the model version in which both mean something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from weir.inference.v1.chat_pb2 import ChatPrompt
from weir.kvstore.v1 import block_hash
from weir.router.v1.router_pb2 import EmbedInput
from weir.tokenizer.v1.tokenizer_pb2 import Answer, Ask
from weir_chassis.errors import (
    Draining,
    PromptTooLong,
    RevisionMismatch,
    WeirError,
)
from weir_chassis.telemetry import carried_trace, current_request
from weir_router.demand import demand_of
from weir_router.faults.retries import Retries
from weir_router.faults.table import Where, verdict
from weir_router.fleet.fleet import Fleet
from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorModel
from weir_router.journey import Journey
from weir_router.models.target import Target
from weir_router.policies.choose import choose_tokenizer
from weir_router.policies.externals import able_externals
from weir_router.providers.guess import unencoded
from weir_router.regions import Residency
from weir_router.request import EncodedInputs, EncodedPrompt, TextPrompt, TokenIdsPrompt
from weir_router.validation import check_vocabulary

T = TypeVar("T")
# To a tokenizer that has been chosen.
_Send = Callable[[Ask], Awaitable[Answer]]
_Asked = Callable[[_Send, ExecutorModel], Awaitable[T]]


class Asking(Protocol):
    """Who asks: its number, where it may go, and how long it may still take."""

    @property
    def turn(self) -> int: ...

    @property
    def residency(self) -> Residency: ...

    def left_seconds(self) -> float | None: ...


class Encoder:
    """`cache_pools`: tenant → whose cached prefixes it shares."""

    def __init__(self, fleet: Fleet, retries: Retries, cache_pools: Mapping[str, str]):
        self._fleet, self._retries, self._cache_pools = fleet, retries, cache_pools

    async def encode(self, target: Target, journey: Journey) -> EncodedPrompt:
        """In tokens, or as it is where only workers outside the suite can take it. Raises as `_encode` does."""
        home = journey.residency.at_home
        if journey.residency.fallback and not self._encodes(target, home) and self._may_leave(target, journey, home):
            return unencoded(target.model, journey.request)  # it need not leave its region
        try:
            return await self._encode(target, journey)
        except WeirError as error:
            elsewhere = verdict(error, Where.BEFORE_FIRST_TOKEN).elsewhere
            if not elsewhere or not self._may_leave(target, journey, journey.residency):
                raise
            return unencoded(target.model, journey.request)

    def _encodes(self, target: Target, place: Residency) -> bool:
        """Whether the suite's own workers there can take requests for it."""
        snapshot = replace(self._fleet.snapshot().within(place), externals=())
        return snapshot.answers(target.model, target.revision)

    def _may_leave(self, target: Target, journey: Journey, place: Residency) -> bool:
        """Whether somebody there can take the request by its text alone."""
        demand = demand_of(journey, unencoded(target.model, journey.request))
        return bool(able_externals(self._fleet.snapshot().within(place), demand))

    async def _encode(self, target: Target, journey: Journey) -> EncodedPrompt:
        """Raises NoWorker, RevisionMismatch, NotFound, DeadlineExceeded, and whatever the tokenizer refuses with."""
        prompt = journey.request.prompt
        adapter = self._resolve_adapter(target, journey.request.adapter, journey)
        salt = self._salt(journey.request.tenant)
        if isinstance(prompt, TokenIdsPrompt):
            agreed = self._agreed(target, adapter, journey)
            _check_length(prompt, max(model.max_model_len for model in agreed))
            return await _hash(prompt, agreed[journey.turn % len(agreed)], adapter, salt)
        ask = partial(_encode_prompt, prompt, adapter=adapter, tenant_salt=salt)
        encoded = await self._tokenize(ask, target, adapter, journey)
        _check_revision(encoded.version, target)
        return encoded

    async def encode_inputs(
        self, target: Target, inputs: Sequence[EmbedInput], adapter_name: str, tenant: str, asking: Asking
    ) -> EncodedInputs:
        """Texts through a tokenizer, token ids as they are. Raises as `encode` does."""
        adapter = self._resolve_adapter(target, adapter_name, asking)
        texts = [one.text for one in inputs if one.HasField("text")]
        if texts:
            version, encoded = await self._tokenize(partial(_encode_texts, texts), target, adapter, asking)
            _check_revision(version, target)
        else:
            agreed = self._agreed(target, adapter, asking)
            version, encoded = agreed[asking.turn % len(agreed)].version, []
        of_texts = iter(encoded)
        token_ids = [next(of_texts) if one.HasField("text") else one.token_ids.token_ids for one in inputs]
        return EncodedInputs(version, token_ids, adapter, self._salt(tenant))

    async def encode_text(self, target: Target, text: str, asking: Asking) -> tuple[Version, Sequence[int]]:
        """The text's own tokens, without those that a model expects around it. Raises as `encode` does."""
        ask = partial(_encode_texts, [text], add_special_tokens=False)
        version, encoded = await self._tokenize(ask, target, "", asking)
        _check_revision(version, target)
        return version, encoded[0]

    def _salt(self, tenant: str) -> str:
        """No tenant finds a block that another one's prompt has left, unless both share a pool."""
        return self._cache_pools.get(tenant, tenant)

    async def _tokenize(self, ask: _Asked[T], target: Target, adapter: str, asking: Asking) -> T:
        """Tokenizers keep nothing between calls, so a second one may be asked when the first fails.

        One that drains has not failed, and has not had it: as many as do so may be asked.
        """
        choose = partial(
            choose_tokenizer, model=target.model, revision=target.revision, turn=asking.turn, adapter=adapter
        )
        failure: WeirError | None = None
        num_failures, asked = 0, frozenset[str]()
        while True:
            try:
                tokenizer, executor = self._find(asking, partial(choose, excluded=asked))
            except WeirError as nobody:
                # That nobody else is there matters less to the client than what happened.
                raise failure or nobody from None
            try:
                return await self._call(tokenizer.address, ask, executor, asking)
            except WeirError as error:
                num_failures += not isinstance(error, Draining)
                if not self._retries.may_retry(error, Where.BEFORE_FIRST_TOKEN, num_failures):
                    raise
                failure, asked = error, asked | {tokenizer.address}

    def _find(self, asking: Asking, decide: Callable[[FleetSnapshot], T]) -> T:
        """What is decided of the fleet where the request may go."""
        snapshot = self._fleet.snapshot(counted=False)
        return asking.residency.find(lambda place: decide(snapshot.within(place)))

    def _resolve_adapter(self, target: Target, name: str, asking: Asking) -> str:
        return self._find(asking, lambda fleet: fleet.resolve_adapter(target.model, name, target.revision))

    def _agreed(self, target: Target, adapter: str, asking: Asking) -> Sequence[ExecutorModel]:
        executors = self._find(asking, lambda fleet: fleet.agreed(target.model, adapter, target.revision))
        return [executor.model for executor in executors if executor.model]

    async def _call(self, address: str, ask: _Asked[T], model: ExecutorModel, asking: Asking) -> T:
        stream = self._fleet.tokenizer(address, asking.residency).stream
        return await ask(partial(stream.ask, left_seconds=asking.left_seconds()), model)


async def _encode_texts(
    texts: Sequence[str], send: _Send, model: ExecutorModel, *, add_special_tokens: bool = True
) -> tuple[Version, list[Sequence[int]]]:
    """Without hashes: what is embedded has its own rules about cached blocks, which the executor knows."""
    ask = _new_ask()
    request = ask.tokenize
    request.model, request.add_special_tokens = model.version.model, add_special_tokens
    request.texts.extend(texts)
    answer = (await send(ask)).tokenized
    return Version.of(answer.model_version), [prompt.token_ids for prompt in answer.prompts]


async def _encode_prompt(
    prompt: TextPrompt | ChatPrompt, send: _Send, model: ExecutorModel, *, adapter: str, tenant_salt: str
) -> EncodedPrompt:
    # Filled where it lies: a message that is put into another one is copied.
    ask = _new_ask()
    request = ask.apply_chat_template if isinstance(prompt, ChatPrompt) else ask.tokenize
    request.model, scope = model.version.model, request.hash_scope
    scope.block_size, scope.adapter, scope.tenant_salt = model.block_size, adapter, tenant_salt
    if isinstance(prompt, ChatPrompt):
        ask.apply_chat_template.prompt.CopyFrom(prompt)
        chat = (await send(ask)).applied
        version, tokenized = chat.model_version, chat.prompt
    else:
        ask.tokenize.texts.append(prompt.text)
        if prompt.add_special_tokens is not None:
            ask.tokenize.add_special_tokens = prompt.add_special_tokens
        answer = (await send(ask)).tokenized
        version, tokenized = answer.model_version, answer.prompts[0]
    return EncodedPrompt(
        Version.of(version), tokenized.token_ids, tokenized.block_hashes, model.block_size, adapter, tenant_salt
    )


def _new_ask() -> Ask:
    """On behalf of the request that this task serves."""
    request = current_request()
    return Ask() if request is None else Ask(request_id=request.request_id, traceparent=carried_trace(request))


def _check_revision(version: Version, target: Target) -> None:
    """A tokenizer may have changed what it holds since it was chosen: its ids would mean something else."""
    if target.revision not in ("", version.revision):
        message = f"{target} was asked for, and the tokenizer holds revision {version.revision!r} now"
        raise RevisionMismatch(message, metadata={"tokenizer_revision": str(version)})


def _check_length(prompt: TokenIdsPrompt, limit: int) -> None:
    """Before it is hashed: a message has room for millions of ids."""
    if len(prompt.token_ids) >= limit:
        raise PromptTooLong("prompt", len(prompt.token_ids), limit - 1)


async def _hash(prompt: TokenIdsPrompt, model: ExecutorModel, adapter: str, tenant_salt: str) -> EncodedPrompt:
    """Ids need no tokenizer; their hashes are computed here by the contract's own code. Raises InvalidArgument."""
    check_vocabulary(prompt.token_ids, model.vocab_size)
    hashes = await hash_blocks(model.version, prompt.token_ids, model.block_size, adapter, tenant_salt)
    return EncodedPrompt(model.version, prompt.token_ids, hashes, model.block_size, adapter, tenant_salt)


async def hash_blocks(
    version: Version, token_ids: Sequence[int], block_size: int, adapter: str, tenant_salt: str
) -> bytes:
    """16 bytes for each full block. Off the event loop: a long prompt has thousands of blocks."""
    scope = block_hash.HashScope(version.model, version.revision, version.tokenizer_hash, adapter, tenant_salt)
    return await asyncio.to_thread(_hash_blocks, scope, token_ids, block_size)


def _hash_blocks(scope: block_hash.HashScope, token_ids: Sequence[int], block_size: int) -> bytes:
    return block_hash.join_hashes(block_hash.block_hashes(block_hash.scope_root(scope), token_ids, block_size))
