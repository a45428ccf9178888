"""One tokenizer: which models it has loaded, and the one stream to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weir.tokenizer.v1.tokenizer_pb2 import DESCRIPTOR, GetTokenizerInfoRequest
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_chassis.errors import Unsupported
from weir_chassis.telemetry import get_logger
from weir_router.fleet.link import LinkContext
from weir_router.fleet.model_version import Version
from weir_router.fleet.stream_link import StreamLink
from weir_router.fleet.views import TokenizerModel, TokenizerView
from weir_router.streams.tokenizer_stream import TokenizerStream

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub


class TokenizerLink(StreamLink[TokenizerStream]):
    kind = "tokenizer"
    service = DESCRIPTOR.services_by_name["TokenizerService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self._stub: TokenizerServiceAsyncStub = TokenizerServiceStub(self.channel)
        self._models: tuple[TokenizerModel, ...] = ()
        self._too_old = False

    def view(self) -> TokenizerView:
        return TokenizerView(self.address, self.current_state(), self._models, self.traits, too_old=self._too_old)

    def give_up(self, silent_seconds: float) -> None:
        if self._stream is not None:
            self._stream.give_up(silent_seconds)

    async def probe(self) -> None:
        """Raises Unsupported for one that is older than the stream: it is of no use until it is upgraded."""
        timeout = self.context.settings.probe_timeout_seconds
        info = await self._stub.GetTokenizerInfo(GetTokenizerInfoRequest(), timeout=timeout)
        models = tuple(TokenizerModel(Version.of(t.model_version), t.has_chat_template) for t in info.tokenizers)
        too_old = not info.has_encode
        if (models, too_old) != (self._models, self._too_old):
            self._models, self._too_old = models, too_old
            self.context.on_change()
            if too_old:
                get_logger().error("tokenizer_too_old", address=self.address, consequence="it is given no requests")
        if too_old:
            raise Unsupported("it is older than this router: it has no Encode")

    async def hold(self) -> None:
        settings = self.context.settings
        stream = TokenizerStream(
            self.address,
            self.context.clock,
            settings.tokenizer_timeout_seconds,
            self.uses(),
            self.context.pace.joining_seconds,
        )
        with self.connected(stream):
            await stream.run(self._stub.Encode())

    async def poll(self) -> None:
        """It may load a model or another revision while it runs."""
        self.check_silence()
        await self.probe()
