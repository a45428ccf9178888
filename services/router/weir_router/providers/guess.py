"""About how many tokens a prompt has, where nobody counts: no tokenizer of the model's is here. Pure."""

from __future__ import annotations

from typing import Final

from weir_router.fleet.model_version import Version
from weir_router.request import ClientRequest, EncodedPrompt, Prompt, TextPrompt, TokenIdsPrompt

# Of English text in the vocabularies of today's models; other languages take more tokens for a byte.
_BYTES_PER_TOKEN: Final = 4
# Around each message, by a template.
_TOKENS_PER_MESSAGE: Final = 4


def unencoded(model: str, request: ClientRequest) -> EncodedPrompt:
    """The prompt of a request that can only go, as it is, to workers outside the suite: of no revision yet."""
    version = Version(model, revision="", tokenizer_hash="")
    return EncodedPrompt(version, (), b"", block_size=1, guessed_tokens=guessed_tokens(request.prompt))


def most_tokens(guessed: int) -> int:
    """That a prompt of so many guessed ones can have: no token is of less than a byte."""
    return guessed * _BYTES_PER_TOKEN


def guessed_tokens(prompt: Prompt) -> int:
    """At least 1. For limits and comparisons, never for what is billed as counted."""
    if isinstance(prompt, TokenIdsPrompt):
        return len(prompt.token_ids)
    if isinstance(prompt, TextPrompt):
        return _of_bytes(len(prompt.text.encode()))
    texts = [part.text for message in prompt.messages for part in message.content]
    tools = sum(tool.ByteSize() for tool in prompt.tools)
    return _of_bytes(sum(len(text.encode()) for text in texts) + tools) + _TOKENS_PER_MESSAGE * len(prompt.messages)


def _of_bytes(size: int) -> int:
    return max(1, -(-size // _BYTES_PER_TOKEN))
