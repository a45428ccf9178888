"""An OpenAI-compatible endpoint that answers a prompt with the prompt's own words, and fails by name and on demand.

It speaks the wire as the official server does: chunks of a chat or a completion, `[DONE]`, usage when it is asked for,
error objects. That it does is checked with the official client, which parses it (`test_openai_server.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk-test-0123456789"
MODEL = "example-large"


@dataclass
class OpenAIServer:
    """What a test may look at: `requests`, `live`, `keys`. The rest it may set."""

    requests: list[Mapping[str, Any]] = field(default_factory=list)
    # Paths and `Authorization` headers, in the order in which they came, probes among them.
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    live: int = 0
    url: str = ""
    # Answered instead: a status, headers and a body.
    refusal: tuple[int, Mapping[str, str], Any] | None = None
    # Sent as a chunk after so many words: an error inside a stream that began well.
    error_after: tuple[int, Mapping[str, Any]] | None = None
    # The connection is cut after so many words.
    cut_after: int | None = None
    # Nothing more is sent after so many words, until the client goes.
    hang_after: int | None = None
    # The answer to a request is begun only when this is set.
    running: asyncio.Event = field(default_factory=asyncio.Event)
    counts_tokens: bool = True
    cached_tokens: int = 0
    ends_without_done: bool = False
    finish_reason: str = "stop"
    tool_calls: Sequence[Mapping[str, Any]] = ()
    # Each chunk is sent in so many pieces, cut anywhere.
    pieces: int = 1
    models_status: int = 200

    def __post_init__(self) -> None:
        self.running.set()

    async def models(self, request: web.Request) -> web.Response:
        self._note(request)
        if not self._knows_key(request):
            return _refused(401, "invalid_api_key", "Incorrect API key provided: sk-te*****")
        data = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "test"}]
        return web.json_response({"object": "list", "data": data}, status=self.models_status)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        body = await request.json()
        self.requests.append(body)
        self.live += 1
        try:
            await self.running.wait()
            if self.refusal is not None:
                status, headers, answer = self.refusal
                text = answer if isinstance(answer, str) else json.dumps(answer)
                return web.Response(status=status, headers=dict(headers), text=text)
            if not self._knows_key(request):
                return _refused(401, "invalid_api_key", "Incorrect API key provided: sk-te*****")
            if body["model"] != MODEL:
                return _refused(404, "model_not_found", f"The model `{body['model']}` does not exist")
            return await self._stream(request, body)
        finally:
            self.live -= 1

    async def _stream(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, chunk in enumerate(_chunks(self, body)):
            if self.error_after is not None and number == self.error_after[0]:
                await self._send(response, {"error": self.error_after[1]})
                return response
            if number == self.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == self.hang_after:
                await asyncio.Event().wait()
            await self._send(response, chunk)
        if not self.ends_without_done:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, chunk: Mapping[str, Any]) -> None:
        data = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
        size = -(-len(data) // self.pieces)
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])

    def _note(self, request: web.Request) -> None:
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization", ""))

    def _knows_key(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {KEY}"


def words_of(body: Mapping[str, Any]) -> list[str]:
    """The prompt's words, each with the blank before it: what is answered."""
    text = body.get("prompt") or "".join(_text(message) for message in body["messages"])
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])][
        : body.get("max_tokens") or body.get("max_completion_tokens")
    ]


def _chunks(server: OpenAIServer, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    chat, words, n = "messages" in body, words_of(body), body.get("n", 1)
    choices: list[Mapping[str, Any]] = []
    if chat:
        choices += [
            {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None} for i in range(n)
        ]
    for position, word in enumerate(words):
        for i in range(n):
            choices.append(_word(body, i, word if i == 0 else f"{word}{i}", position))
    choices += [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None} for call in server.tool_calls]
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    reason = "length" if limit == len(words) else server.finish_reason
    choices += [{"index": i, **({"delta": {}} if chat else {"text": ""}), "finish_reason": reason} for i in range(n)]
    kind = "chat.completion.chunk" if chat else "text_completion"
    common = {"id": "cmpl-1", "object": kind, "created": 1, "model": f"{body['model']}-2026-11-01"}
    wants_usage = server.counts_tokens and body.get("stream_options", {}).get("include_usage")
    chunks: list[Mapping[str, Any]] = [
        {**common, "choices": [choice], **({"usage": None} if wants_usage else {})} for choice in choices
    ]
    if wants_usage:
        chunks.append({**common, "choices": [], "usage": _usage(server, body, n * len(words))})
    return chunks


def _word(body: Mapping[str, Any], index: int, word: str, position: int) -> Mapping[str, Any]:
    chat, count = "messages" in body, body.get("logprobs")
    logprobs: Mapping[str, Any] | None = None
    if chat and count:
        top = [{"token": word, "logprob": -0.5, "bytes": list(word.encode())}] * min(1, body.get("top_logprobs", 0))
        logprobs = {"content": [{"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": top}]}
    elif count is not None:
        logprobs = {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [{word: -0.5}], "text_offset": [0]}
    said: Mapping[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
    return {"index": index, **said, "finish_reason": None, "logprobs": logprobs}


def _usage(server: OpenAIServer, body: Mapping[str, Any], completion: int) -> Mapping[str, Any]:
    prompt = len(words_of({**body, "max_tokens": None, "max_completion_tokens": None}))
    details = {"prompt_tokens_details": {"cached_tokens": server.cached_tokens}} if server.cached_tokens else {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **details,
    }


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _refused(status: int, code: str, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """On a port of its own, until this is left."""
    server, app = OpenAIServer(), web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_post("/v1/completions", server.complete)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()
