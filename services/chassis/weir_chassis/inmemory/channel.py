"""A grpc.aio.Channel to a server in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
from grpc import ChannelConnectivity

from weir_chassis.channel import Connect, open_channel
from weir_chassis.inmemory import call as calls
from weir_chassis.inmemory.exchange import Exchange, as_metadata
from weir_chassis.inmemory.server import InMemoryServer

_SCHEME = "memory:"


def connector(servers: Mapping[str, InMemoryServer], otherwise: Connect = open_channel) -> Connect:
    """Connects `memory:<name>` to the server of that name, and any other address over the network."""

    def connect(address: str) -> grpc.aio.Channel:
        if not address.startswith(_SCHEME):
            return otherwise(address)
        name = address.removeprefix(_SCHEME)
        assert name in servers, f"no in-memory server is called {name!r}; there are {sorted(servers)}"
        return InMemoryChannel(servers[name])

    return connect


class InMemoryChannel(grpc.aio.Channel):
    def __init__(self, server: InMemoryServer):
        self._server = server
        self._exchanges: set[Exchange] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Makes no new calls; after `grace` seconds cancels those that still run."""
        self._closed = True
        waiters = [asyncio.ensure_future(exchange.ended.wait()) for exchange in self._exchanges]
        if waiters and grace:
            await asyncio.wait(waiters, timeout=grace)
        for exchange in list(self._exchanges):
            exchange.cancel("Channel closed!")
        await asyncio.gather(*waiters)

    def get_state(self, try_to_connect: bool = False) -> ChannelConnectivity:  # noqa: ARG002
        if self._closed:
            return ChannelConnectivity.SHUTDOWN
        return ChannelConnectivity.READY if self._server.serving else ChannelConnectivity.TRANSIENT_FAILURE

    async def wait_for_state_change(self, last_observed_state: ChannelConnectivity) -> None:
        while self.get_state() is last_observed_state:
            await self._server.state_changed()

    async def channel_ready(self) -> None:
        while (state := self.get_state()) is not ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    def unary_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        def call(request: Any, **arguments: Any) -> calls.UnaryUnaryCall:
            return calls.UnaryUnaryCall(self._ask(start(**arguments), request))

        start = self._starter(method, *serializers, **options)
        return call

    def unary_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        def call(request: Any, **arguments: Any) -> calls.UnaryStreamCall:
            return calls.UnaryStreamCall(self._ask(start(**arguments), request))

        start = self._starter(method, *serializers, **options)
        return call

    def stream_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        def call(request_iterator: calls.Requests | None = None, **arguments: Any) -> calls.StreamUnaryCall:
            return calls.StreamUnaryCall(self._begin(start(**arguments)), request_iterator)

        start = self._starter(method, *serializers, **options)
        return call

    def stream_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        def call(request_iterator: calls.Requests | None = None, **arguments: Any) -> calls.StreamStreamCall:
            return calls.StreamStreamCall(self._begin(start(**arguments)), request_iterator)

        start = self._starter(method, *serializers, **options)
        return call

    def _starter(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Callable[..., Exchange]:
        def start(timeout: float | None = None, metadata: Any = None, **_ignored: Any) -> Exchange:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            return Exchange(method, as_metadata(metadata), timeout, request_serializer, response_deserializer)

        return start

    def _ask(self, exchange: Exchange, request: Any) -> Exchange:
        exchange.requests.put_last(request)
        return self._begin(exchange)

    def _begin(self, exchange: Exchange) -> Exchange:
        self._exchanges.add(exchange)
        exchange.on_end(lambda: self._exchanges.discard(exchange))
        self._server.begin(exchange)
        return exchange
