"""ReadHandoff with the kvstore's `BlockChunk`s in place of the generated messages, for either end of a connection."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceServicer, add_ExecutorServiceServicer_to_server
from weir.kvstore.v1.block_chunk import BlockChunk, parse_get
from weir.kvstore.v1.block_chunk_grpc import Rewired, yielding_chunks
from weir.kvstore.v1.kvstore_pb2 import GetBlocksResponse

ReadHandoff: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[pb.ReadHandoffRequest, BlockChunk | GetBlocksResponse]"

_SERVICE = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name


def read_handoff(channel: grpc.aio.Channel) -> ReadHandoff:
    """As the stub's, but what comes are chunks that protobuf has not copied."""
    return channel.unary_stream(
        f"/{_SERVICE}/ReadHandoff",
        request_serializer=pb.ReadHandoffRequest.SerializeToString,
        response_deserializer=parse_get,
    )


def add_servicer_to_server(servicer: ExecutorServiceServicer, server: Any) -> None:
    """As the generated function, but `ReadHandoff` yields chunks: it has the fields of GetBlocksResponse for them."""
    rewired: Any = Rewired(server, {"ReadHandoff": yielding_chunks})
    add_ExecutorServiceServicer_to_server(servicer, rewired)
