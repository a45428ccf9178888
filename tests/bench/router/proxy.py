"""The floor of grpc.aio in Python: a router that does nothing but pass tokens on, from one executor's stream to calls.

python -m bench.router.proxy EXECUTOR PORT        no tokenizer, no text, no books, no other worker when this one dies
"""

from __future__ import annotations

import sys
from contextlib import aclosing

import grpc
import uvloop
from grpc.aio import ServicerContext

from bench.router.doors import ExecutorDoor, executor_door
from weir.inference.v1.stream_pb2 import Delta
from weir.router.v1.router_pb2 import ChatRequest, ChatResponse
from weir.router.v1.router_pb2_grpc import RouterServiceServicer, add_RouterServiceServicer_to_server
from weir_chassis.garbage import search_less_for_cycles
from weir_chassis.limits import server_options

_MAX_STREAMS = 4096


class Proxy(RouterServiceServicer):
    def __init__(self, executor: ExecutorDoor) -> None:
        self._executor = executor

    async def Chat(  # type: ignore[override]  # the stubs know streams as generators only
        self, request: ChatRequest, context: ServicerContext[ChatRequest, ChatResponse]
    ) -> None:
        index = 0
        async with aclosing(self._executor.draw(request.stopping.max_tokens)) as drawn:  # type: ignore[type-var]
            async for token_id in drawn:
                await context.write(ChatResponse(delta=Delta(first_token_index=index, token_ids=[token_id])))
                index += 1


async def _main(executor: str, port: str) -> None:
    async with executor_door(executor) as door:
        server = grpc.aio.server(options=server_options(_MAX_STREAMS))
        add_RouterServiceServicer_to_server(Proxy(door), server)  # type: ignore[abstract]  # all else is UNIMPLEMENTED
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    search_less_for_cycles()
    uvloop.run(_main(*sys.argv[1:3]))
