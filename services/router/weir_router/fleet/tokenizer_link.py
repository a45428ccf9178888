"""One tokenizer: which models it has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weir.tokenizer.v1.tokenizer_pb2 import DESCRIPTOR, GetTokenizerInfoRequest
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_router.fleet.link import Link, LinkContext
from weir_router.fleet.model_version import Version
from weir_router.fleet.snapshot import TokenizerModel, TokenizerView

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub


class TokenizerLink(Link):
    kind = "tokenizer"
    service = DESCRIPTOR.services_by_name["TokenizerService"].full_name

    def __init__(self, address: str, context: LinkContext):
        super().__init__(address, context)
        self.stub: TokenizerServiceAsyncStub = TokenizerServiceStub(self.channel)
        self._models: tuple[TokenizerModel, ...] = ()

    def view(self) -> TokenizerView:
        return TokenizerView(self.address, self.current_state(), self._models, self.traits)

    async def probe(self) -> None:
        timeout = self.context.settings.probe_timeout_seconds
        info = await self.stub.GetTokenizerInfo(GetTokenizerInfoRequest(), timeout=timeout)
        models = tuple(TokenizerModel(Version.of(t.model_version), t.has_chat_template) for t in info.tokenizers)
        if models != self._models:
            self._models = models
            self.context.on_change()

    async def poll(self) -> None:
        """It may load a model or another revision while it runs."""
        await self.probe()
