"""GetBlocks and PutBlocks with `BlockChunk`s in place of the generated messages, for either end of a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import grpc

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import BlockChunk, parse_get, parse_put, serialize_get, serialize_put
from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceServicer, add_KvStoreServiceServicer_to_server

GetBlocks: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[pb.GetBlocksRequest, BlockChunk | pb.GetBlocksResponse]"
PutBlocks: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[BlockChunk | pb.PutBlocksRequest, pb.PutBlocksResponse]"

_SERVICE = pb.DESCRIPTOR.services_by_name["KvStoreService"].full_name


def get_blocks(channel: grpc.aio.Channel) -> GetBlocks:
    """As the stub's, but what comes are chunks, and messages where there is none in them."""
    return channel.unary_stream(
        f"/{_SERVICE}/GetBlocks",
        request_serializer=pb.GetBlocksRequest.SerializeToString,
        response_deserializer=parse_get,
    )


def put_blocks(channel: grpc.aio.Channel) -> PutBlocks:
    """As the stub's, but it takes chunks too."""
    return channel.stream_unary(
        f"/{_SERVICE}/PutBlocks",
        request_serializer=serialize_put,
        response_deserializer=pb.PutBlocksResponse.FromString,
    )


def add_servicer_to_server(servicer: KvStoreServiceServicer, server: Any) -> None:
    """As the generated function, but `GetBlocks` may yield chunks, and the chunks of `PutBlocks` come as such."""
    rewired: Any = Rewired(server, {"GetBlocks": yielding_chunks, "PutBlocks": _taking_chunks})
    add_KvStoreServiceServicer_to_server(servicer, rewired)


class Rewired:
    """Stands before a server and exchanges how some methods are read and written: their generated handlers, by name."""

    def __init__(self, server: Any, exchanges: Mapping[str, Callable[[Any], Any]]) -> None:
        self._server, self._exchanges = server, exchanges

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Those that are registered below are all."""

    def add_registered_method_handlers(self, service: str, generated: Mapping[str, Any]) -> None:
        exchanged = {name: exchange(generated[name]) for name, exchange in self._exchanges.items()}
        handlers = {**generated, **exchanged}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._server.add_registered_method_handlers(service, handlers)


def yielding_chunks(get: Any) -> Any:
    """The generated handler of a stream of blocks → one whose messages may be chunks."""
    return grpc.unary_stream_rpc_method_handler(
        get.unary_stream, request_deserializer=get.request_deserializer, response_serializer=serialize_get
    )


def _taking_chunks(put: Any) -> Any:
    return grpc.stream_unary_rpc_method_handler(
        put.stream_unary, request_deserializer=parse_put, response_serializer=put.response_serializer
    )
