from __future__ import annotations

from unit.router.providers.making import chat, request
from weir_router.fleet.model_version import Version
from weir_router.providers.guess import guessed_tokens, unencoded
from weir_router.request import TextPrompt, TokenIdsPrompt


def test_four_bytes_are_about_a_token() -> None:
    assert guessed_tokens(TextPrompt("x" * 9, None)) == 3
    assert guessed_tokens(TextPrompt("", None)) == 1
    assert guessed_tokens(TokenIdsPrompt([1, 2, 3])) == 3
    assert guessed_tokens(chat("x" * 8, "y" * 8)) == 4 + 2 * 4


def test_a_prompt_that_nobody_encoded_is_of_no_revision() -> None:
    prompt = unencoded("demo", request(TextPrompt("x" * 40, None)))
    assert (prompt.version, prompt.num_tokens) == (Version("demo", "", ""), 10)
