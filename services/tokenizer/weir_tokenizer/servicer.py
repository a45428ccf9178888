"""TokenizerService: each RPC's request goes to the encoder; a stream of them has its own room, `ask_stream`."""

from __future__ import annotations

import asyncio
from typing import Any

from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceServicer
from weir_chassis.deadline import time_left
from weir_chassis.slow_consumer import write_within
from weir_tokenizer.ask_stream import AskDesk, AskStream
from weir_tokenizer.encoder import Encoder


class TokenizerServicer(TokenizerServiceServicer):
    def __init__(self, encoder: Encoder, desk: AskDesk, *, slow_consumer_seconds: float):
        self._encoder, self._desk, self._slow_consumer_seconds = encoder, desk, slow_consumer_seconds
        self._streams: set[AskStream] = set()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        return await self._encoder.tokenize(request, time_left(context))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        return await self._encoder.detokenize(request, time_left(context))

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Any
    ) -> pb.ApplyChatTemplateResponse:
        return await self._encoder.apply_chat_template(request, time_left(context))

    async def GetTokenizerInfo(self, request: pb.GetTokenizerInfoRequest, _: Any) -> pb.GetTokenizerInfoResponse:
        return pb.GetTokenizerInfoResponse(tokenizers=self._encoder.info(request.model), has_encode=True)

    async def Encode(self, _: Any, context: Any) -> None:  # type: ignore[override]
        """Reads and writes by the context and not by iterators, so that a write can be timed."""
        stream = AskStream(self._desk)
        self._streams.add(stream)
        reader = asyncio.create_task(stream.read(context), name="read-asks")
        try:
            while (message := await stream.next_message()) is not None:
                await write_within(context, message, self._slow_consumer_seconds)
        finally:
            self._streams.discard(stream)
            reader.cancel()
            await stream.close()
            await asyncio.gather(reader, return_exceptions=True)

    async def drain(self) -> None:
        """Each stream ends with its last ask, and takes no new one."""
        for stream in self._streams:
            stream.drain()
