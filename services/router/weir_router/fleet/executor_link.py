"""One executor: what it serves, what it owes, and the one stream to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weir.executor.v1.executor_pb2 import (
    DESCRIPTOR,
    EXECUTOR_ROLE_DECODE,
    EXECUTOR_ROLE_PREFILL,
    ExecutorRole,
    GetLoadRequest,
    GetModelInfoRequest,
    ListAdaptersRequest,
)
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_router.fleet.link import LinkContext
from weir_router.fleet.model_version import Version
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.snapshot import ExecutorModel, ExecutorView, Role
from weir_router.fleet.stream_link import StreamLink
from weir_router.streams.executor_stream import ExecutorStream

if TYPE_CHECKING:
    from weir.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub


# One that does not say takes everything, as all did before there were roles.
_ROLES: Mapping[ExecutorRole.ValueType, Role] = {
    EXECUTOR_ROLE_PREFILL: Role.PREFILL,
    EXECUTOR_ROLE_DECODE: Role.DECODE,
}


class ExecutorLink(StreamLink[ExecutorStream]):
    kind = "executor"
    service = DESCRIPTOR.services_by_name["ExecutorService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self.stub: ExecutorServiceAsyncStub = ExecutorServiceStub(self.channel)
        self.outstanding = Outstanding()
        self._model: ExecutorModel | None = None
        self._role = Role.BOTH
        self._max_adapters = 0
        self._adapters: Mapping[str, str] = {}
        self._last_step: tuple[int, int] | None = None

    def view(self) -> ExecutorView:
        count, now = self.outstanding, self.context.clock.monotonic()
        age = None if count.reported_at is None else now - count.reported_at
        return ExecutorView(
            self.address,
            self.current_state(),
            self._model,
            count.routed_tokens,
            count.foreign_tokens,
            age,
            self._adapters,
            self._role,
            self.traits,
        )

    async def probe(self) -> None:
        timeout = self.context.settings.probe_timeout_seconds
        info = await self.stub.GetModelInfo(GetModelInfoRequest(), timeout=timeout)
        version = Version.of(info.model_version)
        self._model = ExecutorModel(version, info.vocab_size, info.max_model_len, info.block_size, info.embedding_size)
        self._role = _ROLES.get(info.role, Role.BOTH)
        self._max_adapters = info.max_adapters
        await self._ask_adapters()

    async def hold(self) -> None:
        try:
            with self.connected(ExecutorStream(self.address, self.context.clock)) as stream:
                await stream.run(self.stub.Generate())
        finally:
            self.outstanding.forget()

    async def poll(self) -> None:
        self.check_silence()
        load = await self.stub.GetLoad(GetLoadRequest(), timeout=self.context.settings.probe_timeout_seconds)
        self.outstanding.report(load.outstanding_tokens, self.context.clock.monotonic())
        self._note_step((load.epoch, load.step))
        await self._ask_adapters()

    async def _ask_adapters(self) -> None:
        """They come and go while it runs."""
        if self._max_adapters:
            timeout = self.context.settings.probe_timeout_seconds
            answer = await self.stub.ListAdapters(ListAdaptersRequest(), timeout=timeout)
            self._adapters = {adapter.name: adapter.fingerprint for adapter in answer.adapters}

    def _note_step(self, step: tuple[int, int]) -> None:
        """A long prefill sends nothing for a while, and its steps are seen here."""
        if self._stream is not None and step != self._last_step:
            self._stream.note_progress()
        self._last_step = step
