"""`tensorrt_llm.LLM` without a GPU, warts included: what it does as it is documented, and arithmetic for a model.

One object for each request, mutated; token ids cumulative; `cancelled` some steps late; a dead engine that raises where
there is `EngineDeadError` and hangs where there is not; statistics that are told once.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fakes.trtllm import fabric, params
from fakes.trtllm.fabric import Fetch, Outcome, Pins
from fakes.trtllm.guided import GuidedDecoder, Matcher
from fakes.trtllm.pool import Held, Pool
from fakes.trtllm.results import EngineDeadError, Logprob, RequestError, RequestOutput
from weir_executor.trtllm.library import Library

_LOWEST = 3  # of ordinary tokens
_CANCEL_STEPS = 2
_READ_SECONDS = 5.0
_ARGUMENTS = frozenset({
    "skip_tokenizer_init", "backend", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "max_batch_size",
    "max_num_tokens", "max_seq_len", "max_beam_width", "enable_chunked_prefill", "kv_cache_config", "scheduler_config",
    "cuda_graph_config", "guided_decoding_backend", "stream_interval", "enable_iter_perf_stats",
    "moe_expert_parallel_size", "gpus_per_node", "enable_lora", "lora_config", "speculative_config",
    "cache_transceiver_config", "kv_connector_config", "disable_overlap_scheduler",
})  # fmt: skip


@dataclass
class _Request:
    result: RequestOutput
    sampling: Any
    salt: str
    lora: int
    computed: int = 0
    generated: list[int] = field(default_factory=list)
    held: Held | None = None
    cancel_in: int | None = None  # steps until the engine has heard of it
    matcher: Matcher | None = None
    handover: params.DisaggregatedParams | None = None
    fetch: Fetch | None = None  # of its blocks, while they are on the way

    @property
    def token_ids(self) -> list[int]:
        return [*self.result.prompt_token_ids, *self.generated]

    @property
    def is_context_only(self) -> bool:
        return self.handover is not None and self.handover.request_type == "context_only"


class _Executor:
    """What is private and read all the same."""

    def __init__(self) -> None:
        self._fatal_error: Exception | None = None
        self.doing_shutdown = False

    def is_shutdown(self) -> bool:
        return self.doing_shutdown


class LLM:
    """`fail`, `die`, `hang` and `resume` inject faults, from any thread.

    `fetches_hang`: nothing comes from other engines, and nobody is told. `context_reason`: how prompts end that are
    handed over, which is another word in other versions. `takes_back`: tokens that an output's end takes back.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := kwargs.keys() - _ARGUMENTS:
            raise ValueError(f"LLM got invalid argument: {', '.join(sorted(unknown))}")
        self.arguments = kwargs
        cache: params.KvCacheConfig = kwargs["kv_cache_config"]
        config = json.loads((Path(model) / "config.json").read_text())
        self._vocab_size, self._skips_tokenizer = int(config["vocab_size"]), skip_tokenizer_init
        self._max_batch_size, self._max_num_tokens = kwargs["max_batch_size"], kwargs["max_num_tokens"]
        self._max_seq_len, self._model = kwargs["max_seq_len"], Path(model)
        if kwargs.get("guided_decoding_backend") is not None and skip_tokenizer_init:
            # Of a rank's `assert tokenizer is not None`.
            raise RuntimeError("Executor worker returned error")
        if kwargs.get("enable_lora") and not kwargs["lora_config"].lora_target_modules:
            # Of a rank's `assert len(lora_config.lora_target_modules) >= 1`.
            raise RuntimeError("Executor worker returned error")
        self._speculation = kwargs.get("speculative_config")
        if self._speculation is not None and not isinstance(self._speculation, params.DecodingBaseConfig):
            raise ValueError("speculative_config: Input should be an instance of DecodingBaseConfig")
        self._guided: GuidedDecoder | None = None  # made for the first who asks: a test without guides does without
        self._chunks = kwargs.get("enable_chunked_prefill", False)
        num_blocks = (cache.max_tokens or 100 * cache.tokens_per_block) // cache.tokens_per_block
        self._pool = Pool(
            num_blocks, cache.tokens_per_block, reuse=cache.enable_block_reuse, max_events=cache.event_buffer_max_size
        )
        self._transceiver: params.CacheTransceiverConfig | None = kwargs.get("cache_transceiver_config")
        limit = self._transceiver.kv_transfer_timeout_ms if self._transceiver is not None else None
        self._transfer_seconds = None if limit is None else limit / 1000
        self._lock = threading.Condition()
        self.pins = Pins(self._pool.release, self._transfer_seconds)
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._stats: deque[dict[str, Any]] = deque(maxlen=1000)
        self._iteration = 0
        self._next_id = 1
        self._executor = _Executor()
        self._may_run = threading.Event()
        self._may_run.set()
        self._stopped = False
        self._failing: Exception | None = None
        self.step_seconds = 0.0
        self.dead_raises = True
        self.fetches_hang = False
        self.context_reason: str | None = "not_finished"
        self.takes_back = 0
        self.submitted: list[dict[str, Any]] = []
        # The first request's: statistics and events go there and nowhere else.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="fake-trtllm", daemon=True)
        self._thread.start()

    # ── the public interface ──────────────────────────────────────────────────────────────────────────────────────────

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        trace_headers: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        if self._stopped:
            raise RuntimeError("LLM is shutting down")
        if self._executor._fatal_error is not None and self.dead_raises:
            raise EngineDeadError(str(self._executor._fatal_error))
        self._check(inputs, sampling_params)
        self._check_handover(disaggregated_params, sampling_params)
        sampling_params.used = True
        result = RequestOutput(self._next_id, list(inputs), asyncio.get_running_loop())
        self._loop = self._loop or asyncio.get_running_loop()
        self._next_id += 1
        lora = lora_request.lora_int_id if lora_request is not None else 0
        self.submitted.append(
            {
                "inputs": list(inputs),
                "sampling": sampling_params,
                "salt": cache_salt,
                "lora": lora_request,
                "disaggregated": disaggregated_params,
                "streaming": streaming,
                "retention": kv_cache_retention_config,
                "result": result,
            }
        )
        request = _Request(result, sampling_params, cache_salt or "", lora, handover=disaggregated_params)
        if disaggregated_params is not None and disaggregated_params.request_type == "generation_only":
            request.fetch = Fetch(disaggregated_params.opaque_state, self._transfer_seconds)
        result.on_abort = partial(self._on_abort, request)
        with self._lock:
            self._waiting.append(request)
            self._lock.notify_all()
        return result

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[Any]:
        """What has not been told yet. Where nothing is, that is an error for who does not want to wait."""
        self._check_loop()
        while self._stats:
            yield json.dumps(self._stats.popleft())
        if timeout is not None and timeout <= 0:
            raise asyncio.QueueEmpty

    async def get_kv_cache_events_async(self, timeout: float | None = 2) -> AsyncIterator[Any]:
        assert self._loop is not None, "KV Event IterationResult is not properly instantiated."
        self._check_loop()
        with self._lock:
            events = self._pool.events()
        for event in events:
            yield event
        if timeout is not None and timeout <= 0:
            raise asyncio.QueueEmpty

    def _check_loop(self) -> None:
        if self._loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError("is bound to a different event loop")

    def shutdown(self) -> None:
        self._executor.doing_shutdown = True
        with self._lock:
            self._stopped, self.pins.is_up = True, False
            self._lock.notify_all()
        self._may_run.set()
        self._thread.join(5)

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def fail(self, error: Exception) -> None:
        """The next step tells every running request this, and goes on."""
        with self._lock:
            self._failing = error

    def die(self, error: Exception | None = None) -> None:
        """A rank has died: who waits hears of it, or hears nothing ever again."""
        self._executor._fatal_error = error or RuntimeError("CUDA error: an illegal memory access was encountered")
        self.pins.is_up = False
        self._may_run.set()
        with self._lock:
            self._lock.notify_all()

    def hang(self) -> None:
        self._may_run.clear()

    def resume(self) -> None:
        self._may_run.set()

    def lose_events(self) -> None:
        with self._lock:
            self._pool.lose_events()

    # ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check(self, inputs: Any, sampling: Any) -> None:
        if not isinstance(inputs, list):
            raise TypeError(f"unsupported inputs: {type(inputs).__name__}")
        assert not sampling.used, "SamplingParams is written to: a new one for each request"
        if self._skips_tokenizer and sampling.end_id is None and not sampling.ignore_eos:
            raise ValueError("end_id must be set when there is no tokenizer")
        if sampling.n > 1 and sampling.is_greedy:
            raise ValueError("n > 1 with greedy sampling")
        if len(inputs) > self._max_num_tokens and not self._chunks:
            raise RequestError(f"the prompt of {len(inputs)} tokens exceeds max_num_tokens {self._max_num_tokens}")
        if len(inputs) + (sampling.max_tokens or 0) > self._max_seq_len:
            raise ValueError(
                f"{len(inputs)} tokens and {sampling.max_tokens} more exceed max_seq_len {self._max_seq_len}"
            )

    def _check_handover(self, handover: Any, sampling: Any) -> None:
        if handover is None:
            return
        if self._transceiver is None or self._transceiver.backend is None:
            raise ValueError("disaggregated requests need a cache_transceiver_config")
        if handover.request_type == "context_only":
            sampling.max_tokens = 1

    def _on_abort(self, request: _Request) -> None:
        """Before there was a way to cancel a transfer, an abort in one ended the engine, and pinned blocks stayed."""
        if request.fetch is not None and request.held is not None and not fabric.may_cancel():
            self.die(RuntimeError("a request was aborted while its blocks were on the way"))
        elif fabric.may_cancel():
            with self._lock:
                self.pins.take(request.result.request_id)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._stopped or self._waiting or self._running or self._executor._fatal_error):
                    self.pins.look()
                    self._lock.wait(0.01 if self.pins else None)
            self._may_run.wait()
            if self._stopped:
                return
            if self._executor._fatal_error is not None:
                self._bury()
                return
            if self.step_seconds:
                time.sleep(self.step_seconds)
            try:
                with self._lock:
                    told = self._step()
            except (RuntimeError, ValueError) as error:  # a guide's, and the end of the rank's loop
                self.die(error)
                continue
            self._wait_for_readers(told)

    def _wait_for_readers(self, told: list[RequestOutput]) -> None:
        """A real step takes longer than reading what it said: so that a busy machine does not turn that round."""
        patience = time.monotonic() + _READ_SECONDS
        while not all(result.is_read for result in told) and time.monotonic() < patience:
            time.sleep(0.0001)

    def _bury(self) -> None:
        if self.dead_raises:
            with self._lock:
                for request in [*self._running, *self._waiting]:
                    request.result.tell(EngineDeadError(str(self._executor._fatal_error)))

    def _step(self) -> list[RequestOutput]:
        """Of the batch, those that may have something to read."""
        self.pins.look()
        self._admit()
        batch = [request.result for request in self._running]
        error, self._failing = self._failing, None
        budget = self._max_num_tokens
        prefilled = generated = drafts = 0
        for request in list(self._running):
            if error is not None:
                self._leave(request)
                request.result.tell(error)
            elif request.fetch is not None:
                self._go_on_fetching(request, request.fetch)
            elif request.result.aborted and self._cancels(request):
                self._finish(request, "cancelled")
            elif request.computed < len(request.result.prompt_token_ids):
                count = min(budget, len(request.result.prompt_token_ids) - request.computed)
                request.computed, budget, prefilled = request.computed + count, budget - count, prefilled + count
                if request.computed == len(request.result.prompt_token_ids):
                    self._pool.store(request.result.prompt_token_ids, request.salt, request.lora)
                    self._draw(request)
            else:
                generated += 1
                drafts += self._draw_several(request)
        self._note(prefilled, generated, drafts)
        return batch

    def _go_on_fetching(self, request: _Request, fetch: Fetch) -> None:
        """Then the other engine's token is told as if it were this one's, with the next, and all of it as cached."""
        assert request.handover is not None
        match fetch.step(hangs=self.fetches_hang):
            case Outcome.FAILED:
                self._leave(request)
                request.result.tell(RequestError("Error in kv cache transfer for generation requests"))
            case Outcome.FETCHED:
                request.fetch, request.computed = None, len(request.result.prompt_token_ids)
                request.generated = list(request.handover.first_gen_tokens or ())
                request.result.cached_tokens = request.computed
                if self._allowed(request) is not None and request.matcher is not None:
                    request.matcher.accept(request.generated[0])
                logprobs = request.handover.first_gen_log_probs
                request.result.tell_with_next(partial(_add_first, request.result, request.generated[0], logprobs))
                self._draw(request)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            request = self._waiting[0]
            if request.result.aborted:
                self._waiting.popleft()
                self._finish(request, "cancelled")
                continue
            prompt = request.result.prompt_token_ids
            found = self._pool.admit(prompt, request.sampling.max_tokens, request.salt, request.lora)
            if found is None:
                return
            request.held, request.computed = found
            request.computed = 0 if request.fetch is not None else request.computed
            request.result.cached_tokens = request.computed
            self._running.append(self._waiting.popleft())

    def _cancels(self, request: _Request) -> bool:
        """It takes some steps until it is heard of."""
        request.cancel_in = _CANCEL_STEPS if request.cancel_in is None else request.cancel_in - 1
        return request.cancel_in <= 0

    def _draw_several(self, request: _Request) -> int:
        """With speculation a step brings several tokens, in one message. How many of them were guessed."""
        guesses = 0 if self._speculation is None else int(self._speculation.max_draft_len)
        for left in range(guesses, -1, -1):
            if request in self._running:
                self._draw(request, more=left > 0)
        return guesses

    def _draw(self, request: _Request, *, more: bool = False) -> None:
        sampling = request.sampling
        token_id = self._next_token(request)
        request.generated.append(token_id)
        if request.matcher is not None:
            request.matcher.accept(token_id)
        logprobs = None if sampling.logprobs is None else self._logprobs(request, token_id)
        if token_id == sampling.end_id and not sampling.ignore_eos:
            self._finish(request, "stop", token_id, logprobs)
        elif token_id in (sampling.stop_token_ids or ()):
            self._finish(request, "stop", token_id, logprobs, stop_reason=token_id)
        elif request.is_context_only:
            self._hand_over(request, token_id, logprobs)
        elif len(request.generated) == sampling.max_tokens:
            self._finish(request, "length", token_id, logprobs)
        else:
            tell = request.result.tell_with_next if more else request.result.tell
            tell(partial(_add, request.result, token_id, logprobs))

    def _hand_over(self, request: _Request, token_id: int, logprobs: dict[int, Logprob] | None) -> None:
        """Its blocks stay. What is told comes all at once, and by an end that is none."""
        assert request.handover is not None
        assert request.held is not None
        result, held = request.result, Held(request.held.reused, request.held.num_new)
        self._running.remove(request)
        state = self.pins.pin(result.request_id, held)
        number = getattr(request.handover, "disagg_request_id", None)
        said = type(request.handover)(
            request_type="context_only",
            first_gen_tokens=[token_id],
            first_gen_log_probs=None if logprobs is None else [logprobs],
            ctx_request_id=result.request_id,
            opaque_state=state,
            **({} if number is None else {"disagg_request_id": number}),
        )

        def end() -> None:
            _add(result, token_id, logprobs)
            result.outputs[0].finish_reason, result.outputs[0].disaggregated_params = self.context_reason, said
            result.finished = True

        result.tell(end)

    def _next_token(self, request: _Request) -> int:
        """A function of all tokens so far and of the seed; greedy has none. What is banned or certain goes first."""
        sampling, banned = request.sampling, set[int]()
        if sampling.min_tokens and len(request.generated) < sampling.min_tokens and not sampling.ignore_eos:
            banned.add(sampling.end_id)
        if sampling.logits_processor is not None:
            logits = Logits()
            sampling.logits_processor(request.result.request_id, logits, [request.token_ids], None, None)
            banned |= logits.banned
        for token_id, bias in (sampling.embedding_bias or {}).items():
            if bias >= 100 and token_id not in banned:
                return int(token_id)
        key = b"" if sampling.is_greedy else str(sampling.seed).encode()
        if (allowed := self._allowed(request)) is not None:
            left = sorted(allowed - banned)
            said = blake2b(key + repr(request.token_ids).encode(), digest_size=8).digest()
            return left[int.from_bytes(said, "little") % len(left)] if left else 0  # the first of equals
        for attempt in range(self._vocab_size):
            said = blake2b(key + repr((attempt, request.token_ids)).encode(), digest_size=8).digest()
            token_id = _LOWEST + int.from_bytes(said, "little") % (self._vocab_size - _LOWEST)
            if token_id not in banned:
                return token_id
        raise AssertionError("every token is banned")

    def _allowed(self, request: _Request) -> set[int] | None:
        """By the request's guide; None where it has none, or has come to its end."""
        if request.sampling.guided_decoding is None:
            return None
        if request.matcher is None:
            if self._guided is None:
                self._guided = GuidedDecoder(self._model, self._vocab_size)
            request.matcher = self._guided.create(request.sampling.guided_decoding)
        return request.matcher.allowed()

    def _logprobs(self, request: _Request, token_id: int) -> dict[int, Logprob]:
        """Of the best, and of the drawn one, which may not be among them."""
        best = {
            (_LOWEST + 7 * rank) % self._vocab_size: Logprob(-0.5 * (rank + 1), rank + 1)
            for rank in range(request.sampling.logprobs)
        }
        best.setdefault(token_id, Logprob(-9.0, 40))
        return best

    def _finish(
        self,
        request: _Request,
        reason: str,
        token_id: int | None = None,
        logprobs: dict[int, Logprob] | None = None,
        *,
        stop_reason: int | None = None,
    ) -> None:
        if reason != "cancelled":  # all but the last token was computed
            self._pool.store(request.token_ids[:-1], request.salt, request.lora)
        self._leave(request)
        trims = stop_reason is not None and not request.sampling.include_stop_str_in_output

        def end() -> None:
            output = request.result.outputs[0]
            if token_id is not None and not trims:
                _add(request.result, token_id, logprobs)
            if self.takes_back:  # what it took for a part of a stop sequence
                del output.token_ids[-self.takes_back :]
            output.finish_reason, output.stop_reason = reason, stop_reason
            request.result.finished = True

        request.result.tell(end)

    def _leave(self, request: _Request) -> None:
        if request in self._running:
            self._running.remove(request)
        if request.held is not None:
            self._pool.release(request.held)

    def _note(self, prefilled: int, generated: int, drafts: int) -> None:
        self._iteration += 1
        self._stats.append(
            {
                "iter": self._iteration,
                "iterLatencyMS": 1.5,
                "numActiveRequests": len(self._running),
                "numQueuedRequests": len(self._waiting),
                "kvCacheStats": {
                    "maxNumBlocks": self._pool.num_blocks,
                    "usedNumBlocks": self._pool.used,
                    "freeNumBlocks": self._pool.num_blocks - self._pool.used,
                    "tokensPerBlock": self._pool.block_size,
                },
                "inflightBatchingStats": {
                    "numScheduledRequests": len(self._running),
                    "numCtxTokens": prefilled,
                    "numGenRequests": generated,
                },
                "specDecodingStats": {"numDraftTokens": drafts},
            }
        )


def _add(result: RequestOutput, token_id: int, logprobs: dict[int, Logprob] | None) -> None:
    result.outputs[0].token_ids.append(token_id)
    if logprobs is not None:
        result.outputs[0].logprobs.append(logprobs)


def _add_first(result: RequestOutput, token_id: int, logprobs: list[dict[int, Logprob]] | None) -> None:
    _add(result, token_id, logprobs[0] if logprobs else None)


class Logits:
    """As much of a tensor as a processor that forbids tokens needs."""

    def __init__(self) -> None:
        self.banned: set[int] = set()

    def __setitem__(self, place: tuple[Any, list[int]], value: float) -> None:
        assert place[0] is Ellipsis
        assert value == -float("inf")
        self.banned |= set(place[1])


def library(version: str = "1.2.1", **changes: Any) -> Library:
    """What `load_library` finds, of fakes."""
    from fakes.trtllm import names  # which names what is here

    found: dict[str, Any] = {
        "version": version,
        "LLM": LLM,
        "SamplingParams": params.SamplingParams,
        "GuidedDecodingParams": params.GuidedDecodingParams,
        "KvCacheConfig": params.KvCacheConfig,
        "SchedulerConfig": params.SchedulerConfig,
        "CudaGraphConfig": params.CudaGraphConfig,
        "LoraConfig": params.LoraConfig,
        "LoRARequest": params.LoRARequest,
        "DisaggregatedParams": params.DisaggregatedParams,
        "CacheTransceiverConfig": params.CacheTransceiverConfig,
        "KvCacheConnectorConfig": params.KvCacheConnectorConfig,
        "KvCacheRetentionConfig": params.KvCacheRetentionConfig,
        "Logprob": Logprob,
        "RequestError": RequestError,
        "EngineDeadError": EngineDeadError,
        "make_bias": lambda _, bias: dict(bias),
        "make_speculation": params.DecodingBaseConfig.from_dict,
        "find": names.find,
    }
    return Library(**{**found, **changes})


def never() -> None:
    """What ends the process of an engine that ends by itself."""
    raise AssertionError("the engine has not ended by itself")
