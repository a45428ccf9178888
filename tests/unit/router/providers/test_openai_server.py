"""The double of a provider, parsed by the official client: what our provider is tested against is the real wire."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from fakes.openai_server import KEY, MODEL, openai_server

MESSAGES: Any = [{"role": "user", "content": "one two three"}]


async def test_a_chat_and_its_usage() -> None:
    async with openai_server() as server, openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            n=2,
            logprobs=True,
            top_logprobs=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        texts = {0: "", 1: ""}
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == {0: "one two three", 1: "one1 two1 three1"}
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 6)
        told = [c.logprobs for chunk in chunks for c in chunk.choices if c.logprobs and c.logprobs.content]
        assert told[0].content is not None
        assert told[0].content[0].top_logprobs[0].token == "one"
        assert [c.finish_reason for chunk in chunks for c in chunk.choices][-2:] == ["stop", "stop"]


async def test_a_completion() -> None:
    async with openai_server() as server, openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        stream = await client.completions.create(
            model=MODEL, prompt="one two three", max_tokens=2, logprobs=1, stream=True
        )
        choices = [choice async for chunk in stream for choice in chunk.choices]
        assert "".join(choice.text for choice in choices) == "one two"
        assert choices[-1].finish_reason == "length"
        assert choices[0].logprobs is not None
        assert choices[0].logprobs.tokens == ["one"]


async def test_errors_before_and_in_a_stream() -> None:
    async with openai_server() as server:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="other", messages=MESSAGES, stream=True)
            server.error_after = (1, {"message": "overloaded", "type": "server_error", "code": None})
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError, match="overloaded"):
                [chunk async for chunk in stream]
