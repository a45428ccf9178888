"""What ExecutorService promises, as checks that take a stub. Every engine behind every transport passes them."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from xxhash import xxh3_64_intdigest

from contract.kv_watch import Mirror, Place
from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.inference.v1.embedding_pb2 import Pooling
from weir.inference.v1.error_pb2 import ErrorReason
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import Speculation, SpeculationMode
from weir.kvstore.v1.block_hash import HashScope, block_hashes, join_hashes, scope_root, split_hashes
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.limits import MAX_JOINED
from weir_chassis.status import from_failure, from_rpc_error

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub as Stub

Check = Callable[["Stub"], Awaitable[None]]
Output = tuple[int, int]  # handle, output index

_NGRAM = Speculation(mode=SpeculationMode.SPECULATION_MODE_NGRAM)
_DRAFT_MODEL = Speculation(mode=SpeculationMode.SPECULATION_MODE_DRAFT_MODEL)
_OFF = Speculation(mode=SpeculationMode.SPECULATION_MODE_OFF)
_PATIENCE_SECONDS = 20.0
GREEDY = SamplingParameters(temperature=0, seed=1)
SEEDED = SamplingParameters(temperature=1, seed=1234)


def connect(channel: grpc.aio.Channel) -> Stub:
    return ExecutorServiceStub(channel)


class Caller:
    """One Generate stream. Reads it, and holds the executor to its word while doing so: order, indexes, last words."""

    def __init__(self, stub: Stub, info: pb.GetModelInfoResponse) -> None:
        self.info = info
        self.call = stub.Generate()
        self.messages: list[pb.GenerateResponse] = []
        self.accepted: set[int] = set()
        self.tokens: dict[Output, list[int]] = defaultdict(list)
        self.first_index: dict[Output, int] = {}
        self.logprobs: dict[Output, list[float]] = defaultdict(list)
        self.finished: dict[Output, pb.ExecutorOutputFinished] = {}
        self.ended: dict[int, pb.RequestEnd] = {}
        self.failed: dict[int, WeirError] = {}

    async def submit(self, handle: int, prompt: Sequence[int] = (), **fields: Any) -> None:
        await self.send(submit(self.info, handle, prompt, **fields))

    async def send(self, message: pb.Submit) -> None:
        await self.call.write(pb.GenerateRequest(submit=message))

    async def abort(self, handle: int, output_index: int | None = None) -> None:
        await self.call.write(pb.GenerateRequest(abort=pb.Abort(handle=handle, output_index=output_index)))

    async def read(self) -> bool:
        """The next message, checked and noted. False at the stream's end."""
        message = await asyncio.wait_for(self.call.read(), _PATIENCE_SECONDS)
        if not isinstance(message, pb.GenerateResponse):
            return False
        self._note(message)
        return True

    async def until_told(self, *handles: int) -> None:
        """Reads until each of these has had its last word."""
        while not all(handle in self.ended or handle in self.failed for handle in handles):
            assert await self.read(), f"the stream ended: {await self.call.code()} {await self.call.details()}"

    async def until_tokens(self, handle: int, count: int, output_index: int = 0) -> None:
        while len(self.tokens[handle, output_index]) < count:
            assert await self.read(), f"the stream ended: {await self.call.code()} {await self.call.details()}"

    async def finish(self) -> None:
        """No more commands; reads to the end."""
        await self.call.done_writing()
        while await self.read():
            pass

    async def error(self) -> WeirError:
        """Why the stream ended."""
        try:
            while await self.read():
                pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        raise AssertionError(f"the stream ended with {await self.call.code()}")

    def forget(self, handle: int) -> None:
        """Its handle may name another request from now on."""
        for outputs in (self.tokens, self.first_index, self.finished):
            for output in [output for output in outputs if output[0] == handle]:
                del outputs[output]
        self.accepted.discard(handle)
        self.ended.pop(handle, None)
        self.failed.pop(handle, None)

    def _note(self, message: pb.GenerateResponse) -> None:
        self.messages.append(message)
        for handle in message.accepted_handles:
            assert handle not in self.accepted, f"{handle} accepted twice"
            self.accepted.add(handle)
        self._note_tokens(message)
        for finished in message.finished:
            output = (finished.handle, finished.output_index)
            assert output not in self.finished, f"{output} finished twice"
            self.finished[output] = finished
        for end in message.ended:
            assert end.handle not in self.ended, f"{end.handle} ended twice"
            self.ended[end.handle] = end
        for failed in message.failed:
            self.failed[failed.handle] = from_failure(failed.failure)

    def _note_tokens(self, message: pb.GenerateResponse) -> None:
        batch, offset = message.tokens, 0
        columns = (batch.handles, batch.output_indexes, batch.first_token_indexes, batch.token_counts)
        assert len({len(column) for column in columns}) == 1, "columns of different lengths"
        rows = list(zip(*columns, strict=True))
        for handle, index, first, count in rows:
            output = (handle, index)
            assert count, f"{output} has an empty row"
            assert handle in self.accepted, f"{handle} has tokens and was not accepted"
            assert handle not in self.ended, f"{handle} has tokens after its end"
            assert output not in self.finished, f"{output} has tokens after it finished"
            start = self.first_index.setdefault(output, first)
            assert first == start + len(self.tokens[output]), f"{output} has a gap or repeats a token"
            self.tokens[output] += batch.token_ids[offset : offset + count]
            offset += count
        assert offset == len(batch.token_ids), "token ids that belong to no row"
        for logprobs in batch.logprobs:
            handle, index, _, count = rows[logprobs.row]
            assert len(logprobs.logprobs) == count
            assert len(logprobs.top_token_ids) == len(logprobs.top_logprobs) == count * logprobs.top_count
            self.logprobs[handle, index] += logprobs.logprobs


def submit(
    info: pb.GetModelInfoResponse,
    handle: int,
    prompt: Sequence[int] = (),
    *,
    max_tokens: int | None = 8,
    share: bool = False,
    sampling: SamplingParameters = SEEDED,
    stopping: Mapping[str, Any] | None = None,
    **fields: Any,
) -> pb.Submit:
    """A good request. `share`: with the hashes of its blocks."""
    prompt = prompt or prompt_of(10)
    hashes = b""
    if share:
        version = info.model_version
        root = scope_root(HashScope(version.model, version.revision, version.tokenizer_hash))
        hashes = join_hashes(block_hashes(root, prompt, info.block_size))
    message = pb.Submit(
        handle=handle,
        model_version=info.model_version,
        token_ids=prompt,
        block_hashes=hashes,
        sampling=sampling,
        stopping=StoppingConditions(**{"max_tokens": max_tokens, "ignore_eos": True, **(stopping or {})}),
    )
    message.MergeFrom(pb.Submit(**{"request_id": f"request-{handle}", **fields}))
    return message


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [3 + (7 * i + 13 * salt) % 250 for i in range(length)]


@asynccontextmanager
async def calling(stub: Stub) -> AsyncIterator[Caller]:
    caller = Caller(stub, await stub.GetModelInfo(pb.GetModelInfoRequest()))
    try:
        yield caller
    finally:
        caller.call.cancel()


async def generated(stub: Stub, **fields: Any) -> list[int]:
    """The tokens of one request, alone on its stream."""
    async with calling(stub) as caller:
        await caller.submit(1, **fields)
        await caller.until_told(1)
        assert not caller.failed, caller.failed
        return caller.tokens[1, 0]


async def until_idle(stub: Stub) -> pb.GetLoadResponse:
    """The load once nothing lives any more."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            load = await stub.GetLoad(pb.GetLoadRequest())
            if not (load.live_requests or load.waiting_requests or load.running_sequences):
                return load
            await asyncio.sleep(0.005)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def check_what_computes_is_told(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.engine
    assert info.compute, "who goes on with another's output compares them"


async def check_one_request(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(7, max_tokens=12)
        await caller.until_told(7)
        assert len(caller.tokens[7, 0]) == 12
        assert caller.first_index[7, 0] == 0
        assert caller.finished[7, 0].finish_reason == FinishReason.FINISH_REASON_LENGTH
        assert not caller.finished[7, 0].HasField("stop_token_id")
        usage = caller.ended[7].usage
        assert (usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens) == (10, 0, 12)
        assert all(token_id < caller.info.vocab_size for token_id in caller.tokens[7, 0])


async def check_one_message_per_step_for_all_requests(stub: Stub) -> None:
    before = (await stub.GetLoad(pb.GetLoadRequest())).step
    async with calling(stub) as caller:
        for handle in range(8):
            await caller.submit(handle, prompt_of(10, handle), max_tokens=24)
        await caller.until_told(*range(8))
        steps = (await until_idle(stub)).step - before
        assert len(caller.messages) <= steps
        assert all(len(caller.tokens[handle, 0]) == 24 for handle in range(8))


async def check_several_outputs(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, sampling=SamplingParameters(temperature=1, seed=5, n=3), max_tokens=16)
        await caller.until_told(1)
        outputs = [tuple(caller.tokens[1, index]) for index in range(3)]
        assert {len(output) for output in outputs} == {16}
        assert len(set(outputs)) > 1, "outputs of one prompt draw with different numbers"
        assert {index for _, index in caller.finished} == {0, 1, 2}
        assert caller.ended[1].usage.completion_tokens == 48


async def check_speculation_changes_no_token_and_is_counted(stub: Stub) -> None:
    """A bias that nothing resists makes an output that is easily guessed."""
    async with calling(stub) as caller:
        assert SpeculationMode.SPECULATION_MODE_NGRAM in caller.info.speculation_modes
        for handle, mode in enumerate((_NGRAM, _OFF), start=1):
            sampling = SamplingParameters(temperature=0, logit_bias={40: 100.0}, speculation=mode)
            await caller.submit(handle, sampling=sampling, max_tokens=24)
        await caller.until_told(1, 2)
        assert caller.tokens[1, 0] == caller.tokens[2, 0] == [40] * 24
        guessed, plain = caller.ended[1].usage, caller.ended[2].usage
        assert 0 < guessed.accepted_draft_tokens <= guessed.draft_tokens
        assert (guessed.completion_tokens, plain.completion_tokens, plain.draft_tokens) == (24, 24, 0)


async def check_a_seed_draws_the_same_alone_and_in_company(stub: Stub) -> None:
    alone = await generated(stub, max_tokens=16)
    async with calling(stub) as caller:
        for handle in range(4):
            await caller.submit(handle, prompt_of(10, 10 * handle), max_tokens=16)
        await caller.until_told(*range(4))
        assert caller.tokens[0, 0] == alone


async def check_an_unset_seed_is_drawn(stub: Stub) -> None:
    parameters = SamplingParameters(temperature=1)
    runs = [tuple(await generated(stub, sampling=parameters, max_tokens=24)) for _ in range(2)]
    assert runs[0] != runs[1]


async def check_a_resumed_output_goes_on_as_it_would_have(stub: Stub) -> None:
    """As it says, where it draws anew: then only the best tokens are the same."""
    draws_anew = (await stub.GetModelInfo(pb.GetModelInfoRequest())).draws_anew
    sampling = GREEDY if draws_anew else SamplingParameters(temperature=1, seed=7)
    whole = await generated(stub, sampling=sampling, max_tokens=16)
    async with calling(stub) as caller:
        resumed = pb.ResumedOutput(output_index=0, token_ids=whole[:6])
        await caller.submit(1, sampling=sampling, max_tokens=16, resumed_outputs=[resumed])
        await caller.until_told(1)
        assert caller.first_index[1, 0] == 6
        assert caller.tokens[1, 0] == whole[6:]
        assert caller.ended[1].usage.completion_tokens == 10


async def check_what_was_resumed_at_its_end_just_ends(stub: Stub) -> None:
    async with calling(stub) as caller:
        whole = await generated(stub, max_tokens=5)
        await caller.submit(1, max_tokens=5, resumed_outputs=[pb.ResumedOutput(output_index=0, token_ids=whole)])
        await caller.until_told(1)
        assert not caller.tokens[1, 0]
        assert caller.finished[1, 0].finish_reason == FinishReason.FINISH_REASON_LENGTH


async def check_a_stop_token_ends_and_is_named(stub: Stub) -> None:
    whole = await generated(stub, max_tokens=16)
    stop = whole[7]
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=16, stopping={"stop_token_ids": [stop]})
        await caller.until_told(1)
        assert caller.tokens[1, 0] == whole[: whole.index(stop) + 1]
        assert caller.finished[1, 0].finish_reason == FinishReason.FINISH_REASON_STOP
        assert caller.finished[1, 0].stop_token_id == stop


async def check_min_tokens_hold_off_a_stop_token(stub: Stub) -> None:
    whole = await generated(stub, max_tokens=16)
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=16, stopping={"stop_token_ids": whole, "min_tokens": 10})
        await caller.until_told(1)
        assert len(caller.tokens[1, 0]) > 10 or not set(whole) & set(caller.tokens[1, 0][:10])


async def check_logprobs(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, sampling=SamplingParameters(temperature=1, seed=3, logprobs=4))
        await caller.submit(2, sampling=SamplingParameters(temperature=1, seed=3, logprobs=0))
        await caller.submit(3, sampling=SamplingParameters(temperature=1, seed=3))
        await caller.until_told(1, 2, 3)
        assert [len(caller.logprobs[handle, 0]) for handle in (1, 2, 3)] == [8, 8, 0]
        top_counts = {
            (message.tokens.handles[logprobs.row], logprobs.top_count)
            for message in caller.messages
            for logprobs in message.tokens.logprobs
        }
        assert top_counts == {(1, 4), (2, 0)}


async def check_a_prefix_is_found_again(stub: Stub) -> None:
    async with calling(stub) as caller:
        size = caller.info.block_size
        prompt = prompt_of(3 * size + 1, salt=77)
        for handle in (1, 2):
            await caller.submit(handle, prompt, share=True)
            await caller.until_told(handle)
        assert caller.ended[1].usage.cached_prompt_tokens == 0
        assert caller.ended[2].usage.cached_prompt_tokens == 3 * size
        assert caller.ended[2].engine_cached_tokens == 3 * size
        assert caller.ended[2].store_cached_tokens == 0
        assert caller.tokens[1, 0] == caller.tokens[2, 0]


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def check_abort_ends_a_request(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=None)
        await caller.submit(2, max_tokens=8)
        await caller.until_tokens(1, 3)
        await caller.abort(1)
        await caller.until_told(1, 2)
        assert caller.ended[1].usage.completion_tokens < caller.info.max_model_len - 10
        assert len(caller.tokens[2, 0]) == 8


async def check_abort_ends_one_output(stub: Stub) -> None:
    async with calling(stub) as caller:
        for handle in range(1, 21):
            sampling = SamplingParameters(temperature=1, seed=9, n=2)
            await caller.submit(handle, sampling=sampling, max_tokens=200)
            await caller.until_tokens(handle, 1, output_index=1)
            await caller.abort(handle, output_index=1)
            await caller.until_told(handle)
            assert len(caller.tokens[handle, 0]) == 200
            if len(caller.tokens[handle, 1]) < 200:
                break
            # All was drawn before the abort came, which a busy machine may do: once more.
        assert len(caller.tokens[handle, 1]) < 200
        assert 200 <= caller.ended[handle].usage.completion_tokens < 400


async def check_abort_of_the_unknown_is_no_error(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.abort(99)
        await caller.submit(1)
        await caller.until_told(1)
        await caller.abort(1)
        await caller.submit(2)
        await caller.until_told(2)
        assert not caller.failed


async def check_cancelling_the_stream_frees_everything(stub: Stub) -> None:
    async with calling(stub) as caller:
        for handle in range(4):
            await caller.submit(handle, prompt_of(40, handle), max_tokens=None)
        await caller.until_tokens(0, 1)
        caller.call.cancel()
        load = await until_idle(stub)
        assert load.free_blocks == load.total_blocks
        assert load.outstanding_tokens == 0
        assert load.live_streams == 0


async def check_a_half_closed_stream_finishes_what_lives(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=20)
        await caller.finish()
        assert len(caller.tokens[1, 0]) == 20
        assert 1 in caller.ended
        assert await caller.call.code() is grpc.StatusCode.OK


async def check_a_handle_is_free_after_its_last_word(stub: Stub) -> None:
    async with calling(stub) as caller:
        for _ in range(3):
            await caller.submit(1)
            await caller.until_told(1)
            assert 1 in caller.ended
            caller.forget(1)


async def check_a_live_handle_is_refused_and_lives_on(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=200)
        await caller.submit(1, prompt_of(3))
        await caller.until_told(1)
        assert reason_name(caller.failed[1].reason) == "ALREADY_EXISTS"
        while 1 not in caller.ended:
            assert await caller.read()
        assert len(caller.tokens[1, 0]) == 200


async def check_the_time_that_is_left(stub: Stub) -> None:
    async with calling(stub) as caller:
        sent = submit(caller.info, 1, max_tokens=None)
        sent.time_left.FromMilliseconds(1)
        await caller.send(sent)
        await caller.submit(2, max_tokens=4)
        await caller.until_told(1, 2)
        assert reason_name(caller.failed[1].reason) == "DEADLINE_EXCEEDED"
        assert 2 in caller.ended
    await until_idle(stub)


async def check_no_time_left(stub: Stub) -> None:
    async with calling(stub) as caller:
        sent = submit(caller.info, 1)
        sent.time_left.SetInParent()
        await caller.send(sent)
        await caller.until_told(1)
        assert reason_name(caller.failed[1].reason) == "DEADLINE_EXCEEDED"
        assert 1 not in caller.accepted


async def check_time_enough(stub: Stub) -> None:
    async with calling(stub) as caller:
        sent = submit(caller.info, 1)
        sent.time_left.FromSeconds(60)
        await caller.send(sent)
        await caller.until_told(1)
        assert 1 in caller.ended


async def check_commands_that_follow_are_done_in_their_order(stub: Stub) -> None:
    async with calling(stub) as caller:
        assert caller.info.takes_more
        message = pb.GenerateRequest(submit=submit(caller.info, 1))
        message.more.add(submit=submit(caller.info, 2))
        message.more.add(submit=submit(caller.info, 3))
        message.more.add(abort=pb.Abort(handle=3))
        await caller.call.write(message)
        await caller.until_told(1, 2, 3)
        assert {1, 2} <= set(caller.ended)


async def check_a_command_that_follows_has_none_itself(stub: Stub) -> None:
    async with calling(stub) as caller:
        message = pb.GenerateRequest(submit=submit(caller.info, 1))
        message.more.add(submit=submit(caller.info, 2)).more.add(submit=submit(caller.info, 3))
        await caller.call.write(message)
        error = await caller.error()
        assert reason_name(error.reason) == "INVALID_ARGUMENT"
        assert "more" in error.message


async def check_more_commands_than_a_message_may_hold_end_the_stream(stub: Stub) -> None:
    async with calling(stub) as caller:
        abort = pb.GenerateRequest(abort=pb.Abort(handle=9))
        await caller.call.write(pb.GenerateRequest(abort=pb.Abort(handle=9), more=[abort] * MAX_JOINED))
        await caller.submit(1)
        await caller.until_told(1)
        await caller.call.write(pb.GenerateRequest(submit=submit(caller.info, 2), more=[abort] * (MAX_JOINED + 1)))
        error = await caller.error()
        assert reason_name(error.reason) == "INVALID_ARGUMENT"
        assert all(said in error.message for said in ("more", "4097", "4096"))


async def check_a_command_that_is_none_ends_the_stream(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.call.write(pb.GenerateRequest())
        error = await caller.error()
        assert reason_name(error.reason) == "INVALID_ARGUMENT"
        assert "command" in error.message


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def bad_submits(info: pb.GetModelInfoResponse) -> list[tuple[pb.Submit, str, str]]:
    """Each with the reason, and what its message must name."""
    nan, bad = float("nan"), "INVALID_ARGUMENT"

    def sampling(**fields: Any) -> pb.Submit:
        return submit(info, 1, sampling=SamplingParameters(**fields))

    def stopping(**fields: Any) -> pb.Submit:
        return submit(info, 1, stopping=fields)

    def resumed(*outputs: pb.ResumedOutput) -> pb.Submit:
        return submit(info, 1, resumed_outputs=outputs)

    def version(**fields: str) -> pb.Submit:
        changed = ModelVersion()
        changed.CopyFrom(info.model_version)
        for name, value in fields.items():
            setattr(changed, name, value)
        whole = submit(info, 1)
        whole.model_version.CopyFrom(changed)
        return whole

    def with_hashes(packed: bytes) -> pb.Submit:
        whole = submit(info, 1, prompt_of(2 * info.block_size))
        whole.block_hashes = packed
        return whole

    empty = submit(info, 1)
    del empty.token_ids[:]
    return [
        (empty, bad, "token_ids: missing; 1 to"),
        (submit(info, 1, [3, info.vocab_size]), bad, f"token_ids: token id {info.vocab_size} .* {info.vocab_size - 1}"),
        (submit(info, 1, [5] * info.max_model_len), "PROMPT_TOO_LONG", f"the limit is {info.max_model_len}"),
        (submit(info, 1, max_tokens=info.max_model_len), "PROMPT_TOO_LONG", f"the limit is {info.max_model_len}"),
        (submit(info, 1, request_id="x" * 129), bad, "request_id: longer than 128"),
        (submit(info, 1, adapter="lora"), "NOT_FOUND", "adapter 'lora' is not loaded here"),
        (submit(info, 1, tenant_salt="x" * 129), bad, "tenant_salt: longer than 128"),
        (submit(info, 1, priority=101), bad, r"priority: 101 .*\[-100, 100\]"),
        (submit(info, 1, priority=-101), bad, r"priority: -101 .*\[-100, 100\]"),
        (version(model=""), bad, "model_version.model: missing; 1 to 128"),
        (version(model="x" * 129), bad, "model_version.model: longer than 128"),
        (version(model="another"), "MODEL_NOT_FOUND", "'another' is not served here"),
        (version(revision="another"), "REVISION_MISMATCH", "another revision"),
        (version(tokenizer_hash="another"), "REVISION_MISMATCH", "another revision"),
        (with_hashes(b"x" * 16), bad, "block_hashes: 16 bytes; 16 for each of the prompt's 2 full blocks"),
        (with_hashes(b"x" * 33), bad, "block_hashes: 33 bytes"),
        (with_hashes(b"x" * 48), bad, "block_hashes: 48 bytes"),
        (with_hashes(b"x" * 32), bad, "block_hashes: not of these token_ids"),
        (sampling(temperature=-0.1), bad, r"sampling.temperature: -0.1 .*\[0, 100\]"),
        (sampling(temperature=nan), bad, r"sampling.temperature: nan .*\[0, 100\]"),
        (sampling(temperature=float("inf")), bad, r"sampling.temperature: inf .*\[0, 100\]"),
        (sampling(top_p=0), bad, r"sampling.top_p: 0 .*\(0, 1\]"),
        (sampling(top_p=1.01), bad, r"sampling.top_p: 1.01 .*\(0, 1\]"),
        (sampling(min_p=-0.5), bad, r"sampling.min_p: -0.5 .*\[0, 1\]"),
        (sampling(repetition_penalty=0), bad, r"sampling.repetition_penalty: 0 .*\(0, 100\]"),
        (sampling(presence_penalty=101), bad, r"sampling.presence_penalty: 101 .*\[-100, 100\]"),
        (sampling(frequency_penalty=nan), bad, r"sampling.frequency_penalty: nan .*\[-100, 100\]"),
        (sampling(logit_bias={5: 200}), bad, r"sampling.logit_bias\[5\]: 200 .*\[-100, 100\]"),
        (sampling(logit_bias={info.vocab_size: 1}), bad, f"sampling.logit_bias: token id {info.vocab_size}"),
        (sampling(logit_bias=dict.fromkeys(range(1025), 0.5)), bad, "sampling.logit_bias: 1025 entries; at most 1024"),
        (sampling(n=0), bad, r"sampling.n: 0 .*\[1, "),
        (sampling(n=17), bad, r"sampling.n: 17 .*\[1, "),
        (sampling(logprobs=21), bad, "sampling.logprobs: 21; at most"),
        (sampling(speculation=Speculation(mode=9)), bad, "sampling.speculation.mode: 9 is none"),  # type: ignore[arg-type]
        (sampling(speculation=_DRAFT_MODEL), "UNSUPPORTED", "speculation.mode: .* does not speculate by draft_model"),
        (sampling(speculation=Speculation(max_draft_tokens=0)), bad, r"max_draft_tokens: 0 is outside \[1, "),
        (sampling(speculation=Speculation(max_draft_tokens=17)), bad, r"max_draft_tokens: 17 is outside \[1, "),
        (stopping(max_tokens=0), bad, "stopping.max_tokens: 0; at least 1"),
        (stopping(min_tokens=9), bad, "stopping.min_tokens: 9; at most max_tokens, 8"),
        (stopping(stop=["end"]), bad, "stopping.stop: must be empty"),
        (stopping(stop_token_ids=range(65)), bad, "stopping.stop_token_ids: 65 ids; at most 64"),
        (stopping(stop_token_ids=[info.vocab_size]), bad, f"stopping.stop_token_ids: token id {info.vocab_size}"),
        (resumed(pb.ResumedOutput(output_index=1)), bad, r"resumed_outputs\[0\].output_index: 1; .*below n, 1"),
        (
            resumed(pb.ResumedOutput(), pb.ResumedOutput()),
            bad,
            r"resumed_outputs\[1\].output_index: 0; each at most once",
        ),
        (resumed(pb.ResumedOutput(token_ids=[5] * 9)), bad, r"resumed_outputs\[0\].token_ids: 9 tokens; .* 8"),
        (resumed(pb.ResumedOutput(token_ids=[info.vocab_size])), bad, r"resumed_outputs\[0\].token_ids: token id"),
    ]


async def check_bad_requests_name_field_and_limit(stub: Stub) -> None:
    async with calling(stub) as caller:
        for handle, (bad, reason, words) in enumerate(bad_submits(caller.info), start=1):
            bad.handle = handle
            await caller.send(bad)
            await caller.until_told(handle)
            error = caller.failed[handle]
            assert reason_name(error.reason) == reason, error.message
            with pytest.raises(WeirError, match=words):
                raise error
        # The stream and its neighbours are as they were.
        await caller.submit(0)
        await caller.until_told(0)
        assert 0 in caller.ended
        assert (await until_idle(stub)).live_requests == 0


async def check_a_mismatch_names_both_revisions(stub: Stub) -> None:
    async with calling(stub) as caller:
        sent = submit(caller.info, 1)
        sent.model_version.revision = "theirs"
        await caller.send(sent)
        await caller.until_told(1)
        error = caller.failed[1]
        assert error.reason == ErrorReason.ERROR_REASON_REVISION_MISMATCH
        assert error.metadata["asked_revision"] == "theirs"
        assert error.metadata["revision"] == caller.info.model_version.revision


# ── handing off ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def handed_off(caller: Caller, handle: int, prompt: Sequence[int], **fields: Any) -> pb.Handoff:
    """What is left of a request that was handed off."""
    await caller.submit(handle, prompt, share=True, hand_off=True, **fields)
    await caller.until_told(handle)
    assert not caller.failed, caller.failed
    assert caller.ended[handle].HasField("handoff")
    return caller.ended[handle].handoff


async def read_handoff(stub: Stub, handoff: pb.Handoff, first_block: int = 0) -> list[tuple[bytes, int]]:
    """The hash and the number of bytes of each block, verified."""
    blocks: list[tuple[bytes, int]] = []
    payload = b""
    async for piece in stub.ReadHandoff(
        pb.ReadHandoffRequest(handoff_id=handoff.handoff_id, first_block=first_block), timeout=_PATIENCE_SECONDS
    ):
        assert piece.offset == len(payload)
        payload += piece.chunk
        if len(payload) == piece.payload_bytes:
            assert xxh3_64_intdigest(payload) == piece.checksum
            blocks.append((piece.block_hash, len(payload)))
            payload = b""
    assert not payload
    return blocks


async def _refusal(call: Awaitable[object]) -> WeirError | None:
    """A handoff that is not known; None: it is."""
    try:
        await call
    except grpc.aio.AioRpcError as refused:
        error = from_rpc_error(refused)
    else:
        return None
    assert reason_name(error.reason) == "NOT_FOUND"
    return error


async def until_released(stub: Stub, handoff: pb.Handoff) -> None:
    """Until the executor does not know it any more."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            if await _refusal(read_handoff(stub, handoff)) is not None:
                return
            await asyncio.sleep(0.005)


async def until_all_free(stub: Stub) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (load := await until_idle(stub)).free_blocks != load.total_blocks:
            await asyncio.sleep(0.005)


async def check_a_hand_off_gives_the_first_tokens_and_no_end(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, prompt_of(40), share=True, sampling=SamplingParameters(seed=4, n=2), max_tokens=9)
        await caller.until_told(1)
        handoff = await handed_off(caller, 2, prompt_of(40), sampling=SamplingParameters(seed=4, n=2), max_tokens=9)
        assert handoff.num_blocks == 40 // caller.info.block_size
        assert not {output for output in caller.finished if output[0] == 2}
        assert [caller.tokens[2, index] for index in range(2)] == [caller.tokens[1, index][:1] for index in range(2)]
        assert caller.ended[2].usage.completion_tokens == 2


async def check_a_hand_off_of_a_short_prompt_leaves_no_blocks(stub: Stub) -> None:
    async with calling(stub) as caller:
        handoff = await handed_off(caller, 1, prompt_of(5), max_tokens=9)
        assert (handoff.num_blocks, handoff.handoff_id) == (0, "")


async def check_an_output_that_ends_at_once_is_not_handed_off(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, prompt_of(40), share=True, hand_off=True, max_tokens=1)
        await caller.until_told(1)
        assert caller.finished[1, 0].finish_reason == FinishReason.FINISH_REASON_LENGTH
        assert not caller.ended[1].HasField("handoff")


async def check_handed_off_blocks_are_read_in_order_and_again(stub: Stub) -> None:
    async with calling(stub) as caller:
        sent = submit(caller.info, 1, prompt_of(70), share=True)
        handoff = await handed_off(caller, 1, prompt_of(70))
        hashes = split_hashes(sent.block_hashes)
        for first_block in (0, 3, 0, len(hashes)):
            blocks = await read_handoff(stub, handoff, first_block)
            assert [block_hash for block_hash, _ in blocks] == hashes[first_block:]
            assert len({size for _, size in blocks}) <= 1


async def check_a_handoff_is_given_back_by_its_taker(stub: Stub) -> None:
    async with calling(stub) as caller:
        handoff = await handed_off(caller, 1, prompt_of(70))
        for _ in range(2):
            await stub.ReleaseHandoff(pb.ReleaseHandoffRequest(handoff_id=handoff.handoff_id))
        await until_released(stub, handoff)
        await until_all_free(stub)


async def check_a_handoff_is_given_back_by_an_abort_of_its_handle(stub: Stub) -> None:
    async with calling(stub) as caller:
        handoff, other = await handed_off(caller, 1, prompt_of(70)), await handed_off(caller, 2, prompt_of(70, 1))
        await caller.abort(1, output_index=0)  # of an output, it says nothing of the handoff
        await read_handoff(stub, handoff)
        await caller.abort(1)
        await until_released(stub, handoff)
        await read_handoff(stub, other)


async def check_a_handoff_ends_with_its_stream(stub: Stub) -> None:
    async with calling(stub) as caller:
        handoff = await handed_off(caller, 1, prompt_of(70))
        await read_handoff(stub, handoff)
    await until_released(stub, handoff)
    await until_all_free(stub)


async def check_a_request_that_is_discarded_hands_nothing_off(stub: Stub) -> None:
    """However close to its end that is."""
    async with calling(stub) as caller:
        for turn in range(60):
            tokens = (10, 70, 400)[turn % 3]
            async with calling(stub) as other:
                await other.submit(1, prompt_of(tokens, turn), share=True, hand_off=True)
                await caller.submit(turn, prompt_of(tokens, turn), share=True, hand_off=True)
                await asyncio.sleep(turn * 1e-4)
                await caller.abort(turn)
            await caller.until_told(turn)
        await until_all_free(stub)


async def check_a_handoff_that_is_not_to_be_had_is_computed(stub: Stub) -> None:
    async with calling(stub) as caller:
        await caller.submit(1, prompt_of(40), share=True, sampling=GREEDY)
        await caller.until_told(1)
        first = pb.ResumedOutput(output_index=0, token_ids=caller.tokens[1, 0][:1])
        nobody = pb.Handoff(handoff_id="x", address="127.0.0.1:1", namespace=bytes(16), num_blocks=2)
        await caller.submit(2, prompt_of(40), share=True, sampling=GREEDY, resumed_outputs=[first], take_over=nobody)
        await caller.until_told(2)
        assert caller.tokens[2, 0] == caller.tokens[1, 0][1:]


async def check_bad_handoffs_name_field_and_limit(stub: Stub) -> None:
    async with calling(stub) as caller:
        block: dict[str, Any] = {"num_blocks": 1, "namespace": bytes(16), "handoff_id": "x", "address": "a:1"}
        bad: list[tuple[pb.Submit, str]] = [
            (submit(caller.info, 0, prompt_of(40), hand_off=True), "block_hashes"),
            (submit(caller.info, 0, hand_off=True, take_over=pb.Handoff(**block)), "take_over"),
            (submit(caller.info, 0, prompt_of(40), take_over=pb.Handoff(**block)), "take_over.num_blocks"),
        ]
        for name, value in (("handoff_id", "x" * 129), ("address", "a" * 257), ("namespace", b"x"), ("address", "")):
            wrong = pb.Handoff(**{**block, name: value})
            bad.append((submit(caller.info, 0, prompt_of(40), share=True, take_over=wrong), "take_over"))
        for handle, (message, words) in enumerate(bad, start=1):
            message.handle = handle
            await caller.send(message)
            await caller.until_told(handle)
            assert reason_name(caller.failed[handle].reason) == "INVALID_ARGUMENT"
            assert words in caller.failed[handle].message


async def check_unknown_handoffs_are_not_found_and_released_in_vain(stub: Stub) -> None:
    await stub.ReleaseHandoff(pb.ReleaseHandoffRequest(handoff_id="x"))
    await until_released(stub, pb.Handoff(handoff_id="x"))


# ── embeddings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def embed(info: pb.GetModelInfoResponse, *prompts: Sequence[int], **fields: Any) -> pb.EmbedRequest:
    inputs = [pb.EmbedInput(token_ids=prompt) for prompt in prompts]
    return pb.EmbedRequest(model_version=info.model_version, inputs=inputs, **fields)


def _values(response: pb.EmbedResponse) -> list[Sequence[float]]:
    return [embedding.values for embedding in response.embeddings]


async def check_embeddings_come_in_the_order_of_their_inputs(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    prompts = [prompt_of(1 + 9 * i, salt=i) for i in range(40)]
    for kind in (Pooling.POOLING_MEAN, Pooling.POOLING_LAST):
        together = await stub.Embed(embed(info, *prompts, pooling=kind))
        assert {len(values) for values in _values(together)} == {info.embedding_size}
        assert together.usage.prompt_tokens == sum(map(len, prompts))
        for index in (0, 7, 39):
            (alone,) = _values(await stub.Embed(embed(info, prompts[index], pooling=kind)))
            assert alone == pytest.approx(_values(together)[index], abs=1e-4)
            assert math.hypot(*alone) == pytest.approx(1.0, abs=1e-5)


async def check_unset_pooling_is_the_last_tokens_and_normalized(stub: Stub) -> None:
    info, prompt = await stub.GetModelInfo(pb.GetModelInfoRequest()), prompt_of(20)
    wanted = _values(await stub.Embed(embed(info, prompt, pooling=Pooling.POOLING_LAST, normalize=True)))
    assert _values(await stub.Embed(embed(info, prompt)))[0] == pytest.approx(wanted[0], abs=1e-5)
    (raw,) = _values(await stub.Embed(embed(info, prompt, normalize=False)))
    assert [value / math.hypot(*raw) for value in raw] == pytest.approx(wanted[0], abs=1e-4)


async def check_a_beginning_that_was_embedded_is_found_again_but_by_no_mean(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    prompt = prompt_of(2 * info.block_size + 1, salt=5)
    await stub.Embed(embed(info, prompt))
    again = await stub.Embed(embed(info, prompt))
    mean = await stub.Embed(embed(info, prompt, pooling=Pooling.POOLING_MEAN))
    assert (again.usage.cached_prompt_tokens, mean.usage.cached_prompt_tokens) == (2 * info.block_size, 0)


async def check_what_was_embedded_under_one_salt_is_not_found_under_another(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    prompt = prompt_of(2 * info.block_size + 1, salt=6)
    cached = []
    for salt in ("acme", "mill", "acme"):
        answer = await stub.Embed(embed(info, prompt, tenant_salt=salt))
        cached.append(answer.usage.cached_prompt_tokens)
    assert cached == [0, 0, 2 * info.block_size]


async def check_embeddings_beside_generation_change_no_token(stub: Stub) -> None:
    wanted = await generated(stub, max_tokens=40)
    async with calling(stub) as caller:
        await caller.submit(1, max_tokens=40)
        await caller.until_tokens(1, 1)
        await stub.Embed(embed(caller.info, *[prompt_of(30, salt=i) for i in range(9)], pooling=Pooling.POOLING_MEAN))
        await caller.until_told(1)
        assert caller.tokens[1, 0] == wanted


async def check_cancelling_an_embed_call_frees_everything(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    call = stub.Embed(embed(info, *[prompt_of(info.max_model_len // 2, salt=i) for i in range(64)]))
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not (await stub.GetLoad(pb.GetLoadRequest())).live_requests and not call.done():
            await asyncio.sleep(0)
    call.cancel()
    load = await until_idle(stub)
    assert (load.live_requests, load.free_blocks) == (0, load.total_blocks)


def bad_embeds(info: pb.GetModelInfoResponse) -> list[tuple[pb.EmbedRequest, str, str]]:
    """Each with the reason, and what its message must name."""
    bad, good = "INVALID_ARGUMENT", prompt_of(4)
    other = embed(info, good)
    other.model_version.revision = "another"
    return [
        (embed(info), bad, "inputs: 0; 1 to 256"),
        (embed(info, *[good] * 257), bad, "inputs: 257; 1 to 256"),
        (embed(info, good, []), bad, r"inputs\[1\].token_ids: missing"),
        (embed(info, good, [info.vocab_size]), bad, r"inputs\[1\].token_ids: token id"),
        (embed(info, [5] * (info.max_model_len + 1)), "PROMPT_TOO_LONG", rf"inputs\[0\].*{info.max_model_len}"),
        (embed(info, good, priority=101), bad, r"priority: 101 .*\[-100, 100\]"),
        (embed(info, good, pooling=9), bad, "pooling: 9"),
        (embed(info, good, request_id="x" * 129), bad, "request_id: longer than 128"),
        (embed(info, good, adapter="lora"), "NOT_FOUND", "adapter 'lora' is not loaded here"),
        (other, "REVISION_MISMATCH", "another revision"),
    ]


async def check_bad_embeds_name_field_and_limit(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    for bad, reason, words in bad_embeds(info):
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Embed(bad)
        error = from_rpc_error(refused.value)
        assert reason_name(error.reason) == reason, error.message
        with pytest.raises(WeirError, match=words):
            raise error
    (longest,) = _values(await stub.Embed(embed(info, [5] * info.max_model_len)))
    assert len(longest) == info.embedding_size


# ── what it says of itself ────────────────────────────────────────────────────────────────────────────────────────────


async def check_model_info_is_whole(stub: Stub) -> None:
    info = await stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.model_version.model
    assert info.model_version.revision
    assert info.engine in ("paged", "trtllm", "openengine", "fake")
    numbers = (info.vocab_size, info.max_model_len, info.block_size, info.num_blocks, info.max_num_seqs, info.max_n)
    assert all(numbers), numbers
    assert info.default_sampling.HasField("temperature")


async def check_load_tells_steps_and_one_epoch(stub: Stub) -> None:
    before = await stub.GetLoad(pb.GetLoadRequest())
    await generated(stub)
    after = await until_idle(stub)
    assert before.epoch == after.epoch != 0
    assert after.step > before.step
    assert after.total_blocks > 0


def watch(stub: Stub, **resume: int) -> Mirror:
    return Mirror(stub.WatchKvEvents(pb.WatchKvEventsRequest(**resume)))


async def check_kv_events_begin_with_a_reset_and_go_on(stub: Stub) -> None:
    early = watch(stub)
    await early.read()
    assert early.resets == 1
    hashes = await _fill(stub, salt=1)
    await early.until_held(hashes)
    late = watch(stub)
    await late.until_held(hashes)
    assert late.held == early.held
    assert {(place.tier, place.namespace) for place in late.held} == {("device", b"")}
    assert late.held[Place("device", b"", hashes[1])] == hashes[0]
    assert (late.epoch, late.sequence) == (early.epoch, early.sequence)
    for mirror in (early, late):
        mirror.call.cancel()


async def check_kv_events_resume_where_they_stopped(stub: Stub) -> None:
    first = watch(stub)
    await first.until_held(await _fill(stub, salt=2))
    first.call.cancel()
    second = watch(stub, epoch=first.epoch, from_sequence=first.sequence + 1)
    await second.until_held(await _fill(stub, salt=3))
    assert second.resets == 0
    assert second.hashes.isdisjoint(first.hashes)
    second.call.cancel()


async def check_kv_events_of_another_epoch_are_reset(stub: Stub) -> None:
    hashes = await _fill(stub, salt=4)
    epoch = (await stub.GetLoad(pb.GetLoadRequest())).epoch
    for resume in ({"epoch": epoch - 1, "from_sequence": 1}, {"epoch": epoch, "from_sequence": 1 << 40}):
        mirror = watch(stub, **resume)
        await mirror.until_held(hashes)
        assert mirror.resets == 1
        mirror.call.cancel()


async def _fill(stub: Stub, salt: int) -> list[bytes]:
    """Runs a prompt of two full blocks; returns their hashes."""
    async with calling(stub) as caller:
        sent = submit(caller.info, 1, prompt_of(2 * caller.info.block_size + 1, salt), share=True, max_tokens=1)
        await caller.send(sent)
        await caller.until_told(1)
        return split_hashes(sent.block_hashes)


CHECKS: Sequence[Check] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
