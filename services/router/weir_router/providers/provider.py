"""An OpenAI-compatible endpoint as a worker: one HTTP request for each of ours, its stream as our events."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from weir.inference.v1.output_pb2 import Usage
from weir_chassis.errors import WeirError, WorkerLost
from weir_router.delivery import Event
from weir_router.fleet.model_version import Version
from weir_router.fleet.views import ExecutorModel
from weir_router.providers.config import ProviderTable
from weir_router.providers.errors import Away
from weir_router.providers.external import ExternalContext, ExternalRequest, ExternalWorker
from weir_router.providers.openai_errors import refused
from weir_router.providers.openai_events import Answer, accepted
from weir_router.providers.openai_request import request_body, request_path
from weir_router.providers.sse import EventStream

_MAX_ERROR_BYTES: Final = 65_536
_MAX_KEY_BYTES: Final = 16_384
# A list of models may be missing where completions are not.
_ANSWERS: Final = frozenset({200, 404, 405, 501})


class Provider(ExternalWorker):
    kind, forwards = "provider", False

    def __init__(self, table: ProviderTable, context: ExternalContext):
        super().__init__(table, context)
        self.provider = table
        self.models = {name: _model(name, table) for name in table.models}
        self._key = ""
        self._session = aiohttp.ClientSession(
            connector=_connector(table),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=table.connect_seconds),
            headers=table.headers,
            auto_decompress=True,
            trust_env=False,  # where requests go is configured in one place
        )

    @property
    def abilities(self) -> frozenset[str] | None:
        return frozenset(self.provider.capabilities)

    async def close(self) -> None:
        await self._session.close()

    async def probe(self) -> None:
        self._key = await asyncio.to_thread(_read_key, self.provider.api_key_file)
        async with self._request("GET", "/models") as response:
            if response.status not in _ANSWERS:
                raise await self._refused(response)

    async def execute(self, asked: ExternalRequest) -> AsyncGenerator[Event, None]:
        request, version = asked.request, self.models[asked.model].version
        body = request_body(
            request,
            self.provider.models[asked.model],
            max_tokens_field=self.provider.max_tokens_field,
            capabilities=frozenset(self.provider.capabilities),
        )
        answer = Answer(self.address, request.n)
        async with self._request("POST", request_path(request), body) as response:
            if response.status != 200:
                raise await self._refused(response)
            yield accepted(request.request_id, asked.attempt, version)
            async for data in self._events(response):
                for event in answer.take(data):
                    yield event
                if answer.done:
                    break
            else:
                answer.end()
        yield answer.usage or Usage(prompt_tokens=asked.prompt_tokens, completion_tokens=answer.parts, estimated=True)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[str]:
        """The data of its events. Each part of it has to come in time."""
        stream, limit = EventStream(), self.table.first_answer_seconds
        while True:
            try:
                async with asyncio.timeout(limit):
                    chunk = await response.content.readany()
            except TimeoutError:
                raise self._lost(f"has sent nothing for {limit:g} s") from None
            if not chunk:
                return
            for data in stream.feed(chunk):
                limit = self.table.silence_seconds
                yield data

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one request, closed at the end. Raises what the failure of its connection is to us."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url, limit, answered = self.provider.base_url + path, self.table.first_answer_seconds, False
        try:
            async with (
                asyncio.timeout(limit) as timer,
                self._session.request(method, url, json=body, headers=headers, allow_redirects=False) as response,
            ):
                answered = True
                timer.reschedule(None)  # the parts of its answer have limits of their own
                yield response
        except TimeoutError:
            raise self._lost(f"has not answered for {limit:g} s") from None
        except aiohttp.ClientError as error:
            if answered:
                raise self._lost("broke off its answer") from None
            cause = type(error).__name__  # its words may hold an address of the inside
            raise Away(f"{self.address} could not be reached ({cause})", metadata={"worker": self.address}) from None

    async def _refused(self, response: aiohttp.ClientResponse) -> WeirError:
        async with asyncio.timeout(self.table.silence_seconds):
            body = await response.content.read(_MAX_ERROR_BYTES)
        return refused(self.address, response.status, response.headers, body)

    def _lost(self, what: str) -> WorkerLost:
        return WorkerLost(f"{self.address} {what}", metadata={"worker": self.address})


def _model(name: str, table: ProviderTable) -> ExecutorModel:
    """What is behind a name there, and when it changes, only the provider knows; its own name stands for a revision."""
    version = Version(name, revision=table.models[name], tokenizer_hash="")
    return ExecutorModel(version, vocab_size=0, max_model_len=table.max_model_len, block_size=1)


def _connector(table: ProviderTable) -> aiohttp.TCPConnector:
    """As many connections as requests at once, and one for the probe."""
    context = ssl.create_default_context(cafile=table.ca_file) if table.ca_file else True
    return aiohttp.TCPConnector(limit=table.max_running + 1, ssl=context, ttl_dns_cache=30)


def _read_key(path: Path | None) -> str:
    """Raises Away when it cannot be read."""
    if path is None:
        return ""
    try:
        with path.open(encoding="utf-8") as file:
            key = file.read(_MAX_KEY_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Away(f"its key cannot be read from {path}: {type(error).__name__}") from None
    if not key.isprintable():
        raise Away(f"{path} holds no key")
    return key
