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
    GetModelInfoResponse,
    ListAdaptersRequest,
)
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir_router.fleet.asked import Asked
from weir_router.fleet.link import LinkContext
from weir_router.fleet.load_report import LoadReport
from weir_router.fleet.model_version import Version
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.stream_link import StreamLink
from weir_router.fleet.views import ExecutorModel, ExecutorView, Role
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
        self.outstanding = Outstanding(context.changes)
        # Calls that are no part of the stream.
        self.asked = Asked(self.kind, address)
        self.model: ExecutorModel | None = None
        self._role = Role.BOTH
        self._max_adapters, self._takes_more = 0, False
        self._adapters: Mapping[str, str] = {}
        self._report: LoadReport | None = None

    def view(self, now: float) -> ExecutorView:
        count = self.outstanding
        return ExecutorView(
            self.address,
            self.current_state(),
            self.model,
            count.routed_tokens,
            count.foreign_tokens,
            self._adapters,
            self._role,
            self.traits,
            self._report.load(now) if self._report is not None else None,
            self.ramp(now),
            routed_prefill_tokens=count.routed_prefill_tokens,
            foreign_prefill_tokens=count.foreign_prefill_tokens,
        )

    def recounted(self, view: ExecutorView) -> ExecutorView:
        """The view with the counts of now: itself where they are the same."""
        count = self.outstanding
        routed, foreign = count.routed_tokens, count.foreign_tokens
        # The prompts' part changes when the whole does, and when a prompt is known to be computed.
        if (
            routed == view.routed_tokens
            and foreign == view.foreign_tokens
            and count.routed_prefill_tokens == view.routed_prefill_tokens
        ):
            return view
        return view.recounted(routed, foreign, count.routed_prefill_tokens, count.foreign_prefill_tokens)

    def is_idle(self) -> bool:
        return super().is_idle() and not self.outstanding.routed_requests

    def give_up(self, silent_seconds: float) -> None:
        self.asked.give_up(silent_seconds)

    async def probe(self) -> None:
        timeout = self.context.settings.probe_timeout_seconds
        info = await self.stub.GetModelInfo(GetModelInfoRequest(), timeout=timeout)
        version = Version.of(info.model_version)
        self.model = ExecutorModel(
            version,
            info.vocab_size,
            info.max_model_len,
            info.block_size,
            info.embedding_size,
            numerics=_numerics(info),
            draws_anew=info.draws_anew,
        )
        self._role = _ROLES.get(info.role, Role.BOTH)
        self._max_adapters, self._takes_more = info.max_adapters, info.takes_more
        await self._ask_adapters()

    async def hold(self) -> None:
        try:
            stream = ExecutorStream(self.address, self.context.clock, self.uses(), takes_more=self._takes_more)
            with self.connected(stream):
                await stream.run(self.stub.Generate())
        finally:
            self._report = None
            self.outstanding.forget()

    async def poll(self) -> None:
        self.check_silence()
        if self._stream is not None:
            self._stream.fail_stalled(self.context.settings.no_token_seconds)
            if self.is_stalled():
                self._stream.tell_stalled()
        asked_at = self.context.clock.monotonic()
        load = await self.stub.GetLoad(GetLoadRequest(), timeout=self.context.settings.probe_timeout_seconds)
        self._note_load(LoadReport(load, asked_at))
        await self._ask_adapters()

    async def _ask_adapters(self) -> None:
        """They come and go while it runs."""
        if self._max_adapters:
            timeout = self.context.settings.probe_timeout_seconds
            answer = await self.stub.ListAdapters(ListAdaptersRequest(), timeout=timeout)
            adapters = {adapter.name: adapter.fingerprint for adapter in answer.adapters}
            if adapters != self._adapters:
                self._adapters = adapters
                self.context.on_change()

    def _note_load(self, report: LoadReport) -> None:
        """A long prefill sends nothing for a while, and its steps are seen here."""
        known = self._report
        if not report.follows(known):
            return
        if self._stream is not None and report.has_progressed(known):
            self._stream.note_progress()
        self._report = report
        self.outstanding.report(report.response.outstanding_tokens, report.response.outstanding_prefill_tokens)


def _numerics(info: GetModelInfoResponse) -> str:
    """What decides, besides the version, which tokens it draws."""
    defaults = info.default_sampling.SerializeToString(deterministic=True).hex()
    ends = ",".join(map(str, info.eos_token_ids))
    return f"{info.engine}/{info.compute}/{info.max_model_len}/{ends}/{defaults}"
