"""An engine without a model: arithmetic in place of a transformer, everything else as in the paged engine.

The token at a place is a pure function of (prompt, seed, output index, place), so a resumed or preempted output goes
on as if undisturbed. Blocks, preemption, prefix cache, queues and ends are those of `SteppedEngine`: leases can be
checked.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from weir_chassis.errors import AlreadyExists, WeirError
from weir_executor.adapters.config import AdapterConfig
from weir_executor.adapters.files import Note, read_weights
from weir_executor.engine import AdapterInfo, EngineInfo
from weir_executor.paged.batch import Batch, Scheduled
from weir_executor.paged.scheduler import SchedulerLimits
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.paged.speculation.drafter import Drafter, SpeculationOptions
from weir_executor.paged.speculation.verify import accept
from weir_executor.paged.step_loop import LoopOptions
from weir_executor.paged.stepped_engine import SteppedEngine
from weir_executor.paged.tenants import Tenants
from weir_executor.paged.worker import Draw, Result, Vector
from weir_executor.request import Pooling, PoolingKind
from weir_executor.step_output import TokenLogprobs

# A bias that no ordinary logit resists; the fake takes it for certainty and all smaller ones for nothing.
_CERTAIN_BIAS = 100.0
_MAX_ADAPTER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FakeEngineConfig:
    """A small engine by default, so that tests reach its limits."""

    vocab_size: int = 1000
    max_model_len: int = 4096
    block_size: int = 16
    num_blocks: int = 1024
    block_bytes: int = 64
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    max_waiting: int = 256
    max_n: int = 16
    max_top_logprobs: int = 20
    eos_token_ids: frozenset[int] = frozenset({2})
    lowest_token_id: int = 3  # ordinary tokens are drawn from here up to the vocabulary's end
    eos_after: int | None = None  # generated tokens before each output's EOS; None: it never comes
    embedding_size: int = 8
    step_seconds: float = 0.0
    prefix_cache: bool = True
    kv_ttl_seconds: float | None = None
    emit_full_blocks: bool = False
    transfers_blocks: bool = True
    reads_anywhere: bool = True
    max_adapters: int = 2
    max_adapter_rank: int = 64
    itl_target_seconds: float | None = None
    tenants: Tenants = field(default_factory=Tenants)
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    warm_up: bool = False  # off, so that the first step that a test spoils is one of its own requests'
    check_integrity: bool = False


class FakeDeviceError(Exception):
    """What `die` kills the step thread with."""


class FakeEngine(SteppedEngine):
    """See `Engine`. Faults are injected by `fail_step`, `fail_request`, `die`, `hang` and `resume`, from any thread."""

    def __init__(self, config: FakeEngineConfig | None = None) -> None:
        config = config or FakeEngineConfig()
        self._fake = _FakeWorker(config)
        limits = SchedulerLimits(config.max_num_seqs, config.max_batched_tokens, config.block_size, config.tenants)
        options = LoopOptions(
            max_waiting=config.max_waiting,
            emit_full_blocks=config.emit_full_blocks,
            prefix_cache=config.prefix_cache,
            kv_ttl_seconds=config.kv_ttl_seconds,
            itl_target_seconds=config.itl_target_seconds,
            warm_up=config.warm_up,
            check_integrity=config.check_integrity,
        )
        self._loaded = _FakeAdapters()
        super().__init__(
            _info(config), limits, self._fake, options, drafter=Drafter(config.speculation), adapters=self._loaded
        )

    def fail_step(self, error: Exception | None = None) -> None:
        """The next step raises; the engine lives on."""
        self._fake.next_error = error or RuntimeError("a step was told to fail")

    def fail_request(self, key: int, error: WeirError) -> None:
        """The request's next result is this error; its neighbours are unharmed."""
        self._fake.request_errors[key] = error

    def die(self) -> None:
        """The next step stops the engine for good."""
        self._fake.next_error = FakeDeviceError("the engine was told to die")

    def hang(self) -> None:
        """From the next step on nothing moves, until `resume` or `close`."""
        self._fake.may_run.clear()

    def resume(self) -> None:
        self._fake.may_run.set()

    def hold_loads(self) -> None:
        """From now on an adapter that is read is not loaded, until `release_loads`."""
        self._loaded.may_load.clear()

    def release_loads(self) -> None:
        self._loaded.may_load.set()

    def set_step_seconds(self, seconds: float) -> None:
        self._fake.step_seconds = seconds


class _FakeAdapters:
    """Names, each with a directory that holds the files of an adapter; nobody looks into its weights."""

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.may_load.set()
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def load(self, name: str, directory: Path, config: AdapterConfig, note: Note) -> AdapterInfo:
        if name in self._names:
            raise AlreadyExists(name, f"an adapter {name!r} is loaded")
        data, fingerprint = read_weights(directory, _MAX_ADAPTER_BYTES, note)
        while not self.may_load.wait(0.002):
            note(len(data), len(data))
        self._names.add(name)
        return AdapterInfo(name, config.rank, fingerprint, len(data))

    def unload(self, name: str) -> None:
        self._names.remove(name)


class _FakeWorker:
    def __init__(self, config: FakeEngineConfig) -> None:
        self._config = config
        self._closed = threading.Event()
        self._payloads: dict[int, bytes] = {}
        self.step_seconds = config.step_seconds
        self.may_run = threading.Event()
        self.may_run.set()
        self.next_error: Exception | None = None
        self.request_errors: dict[int, WeirError] = {}

    def begin(self) -> None:
        """Arithmetic needs no preparation."""

    def run(self, batch: Batch) -> Sequence[Result]:
        self.may_run.wait()
        if self.step_seconds:
            self._closed.wait(self.step_seconds)
        if self.next_error is not None:
            error, self.next_error = self.next_error, None
            raise error
        return [self._result(scheduled) for scheduled in batch.scheduled]

    def count_usable(self, stored_blocks: Sequence[bytes | memoryview]) -> int:
        wrong = (i for i, block in enumerate(stored_blocks) if len(block) != self._config.block_bytes)
        return next(wrong, len(stored_blocks))

    @property
    def reads_anywhere(self) -> bool:
        return self._config.reads_anywhere

    def read_blocks(self, block_ids: Sequence[int]) -> Sequence[bytes]:
        """Some bytes of the right length that tell blocks apart."""
        size = self._config.block_bytes
        return [_digest((block_id,)).ljust(size, b"\0")[:size] for block_id in block_ids]

    def clear_blocks(self, block_ids: Sequence[int]) -> None:
        pass

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, FakeDeviceError)

    def close(self) -> None:
        self._closed.set()
        self.may_run.set()

    def _result(self, scheduled: Scheduled) -> Result:
        sequence = scheduled.sequence
        if sequence.live.key in self.request_errors:
            return self.request_errors.pop(sequence.live.key)
        if scheduled.reaches_end and sequence.pooling is not None:
            return Vector(embedding(sequence, sequence.pooling, self._config.embedding_size))
        token_ids = [next_token(sequence, self._config, ahead) for ahead in range(scheduled.num_wanted)]
        draws = [Draw(token_id, _logprobs(sequence, token_id)) for token_id in token_ids]
        return accept(draws, scheduled.draft_token_ids)


def next_token(sequence: LiveSequence, config: FakeEngineConfig, ahead: int = 0) -> int:
    """The token `ahead` places beyond the next: one certain by bias, EOS when it is time, else what its place gives."""
    place, forbidden = sequence.num_generated + ahead, sequence.forbidden_token_ids(ahead)
    allowed_eos = sorted(config.eos_token_ids - forbidden)
    certain = [token_id for token_id, bias in sequence.sampling.logit_bias.items() if bias >= _CERTAIN_BIAS]
    if certain and certain[0] not in forbidden:
        return certain[0]
    if config.eos_after is not None and place >= config.eos_after and allowed_eos:
        return allowed_eos[0]
    prompt = _digest(sequence.token_ids[: sequence.num_prompt], _adapter_key(sequence))
    width = config.vocab_size - config.lowest_token_id
    # A greedy model knows neither seed nor output.
    seed, output = (sequence.sampling.seed % 2**64, sequence.output_index) if sequence.sampling.temperature else (0, 0)
    for attempt in range(1 + len(forbidden) + len(config.eos_token_ids)):
        digest = _digest((seed & 0xFFFFFFFF, seed >> 32, output, place, attempt), prompt)
        token_id = config.lowest_token_id + int.from_bytes(digest[:8], "little") % width
        if token_id not in forbidden and token_id not in config.eos_token_ids:
            return token_id
    return config.lowest_token_id


def embedding(sequence: LiveSequence, pooling: Pooling, size: int) -> list[float]:
    """What the tokens give, in [-1, 1]: all of them for a mean, the last and how many there are otherwise."""
    token_ids, key = sequence.token_ids, _adapter_key(sequence)
    seen = token_ids if pooling.kind is PoolingKind.MEAN else (token_ids[-1], len(token_ids))
    values = [int.from_bytes(_digest((*seen, i), key)[:4], "little") / 2**31 - 1.0 for i in range(size)]
    length = math.hypot(*values) if pooling.normalize else 1.0
    return [value / length for value in values]


def _adapter_key(sequence: LiveSequence) -> bytes:
    """As much of its name as BLAKE2 takes for a key."""
    return sequence.live.request.adapter.encode()[:64]


def _logprobs(sequence: LiveSequence, token_id: int) -> TokenLogprobs | None:
    """A certain token, and as many others as were asked for, each less likely than the one before."""
    wanted = sequence.sampling.top_logprobs
    if wanted is None:
        return None
    return TokenLogprobs(0.0, tuple(token_id ^ i for i in range(wanted)), tuple(-float(i) for i in range(wanted)))


def _info(config: FakeEngineConfig) -> EngineInfo:
    return EngineInfo(
        engine="fake",
        compute="arithmetic",
        vocab_size=config.vocab_size,
        max_model_len=min(config.max_model_len, config.num_blocks * config.block_size),
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_n=config.max_n,
        max_top_logprobs=config.max_top_logprobs,
        eos_token_ids=config.eos_token_ids,
        block_bytes=config.block_bytes,
        kv_dtype="uint8",
        kv_layout="fake",
        transfers_blocks=config.transfers_blocks,
        hands_off=config.transfers_blocks,
        embedding_size=config.embedding_size,
        max_adapters=config.max_adapters,
        max_adapter_rank=config.max_adapter_rank,
    )


def _digest(numbers: Iterable[int], key: bytes = b"") -> bytes:
    return blake2b(array("I", numbers).tobytes(), digest_size=16, key=key, person=b"weir.fake").digest()
