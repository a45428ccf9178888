from __future__ import annotations

import pytest

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir_router.models.config import SelectionTable
from weir_router.models.selection import Wanted, long_context, select
from weir_router.request import Prompt, TextPrompt, TokenIdsPrompt

TABLE = SelectionTable(default="small", code="coder", complex="large", long_context="long", long_context_tokens=100)
PYTHON = "Write a Python function that merges two sorted lists."


def chat(*texts: str) -> ChatPrompt:
    roles = ("user", "assistant") * len(texts)
    return ChatPrompt(
        messages=[ChatMessage(role=r, content=[ContentPart(text=t)]) for r, t in zip(roles, texts, strict=False)]
    )


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        (TextPrompt(PYTHON, None), Wanted("coder", "code")),
        (TextPrompt("Prove that there are infinitely many primes.", None), Wanted("large", "complex")),
        (TextPrompt("What is the capital of Mongolia?", None), Wanted("small", "default")),  # simple has no name
        (TextPrompt("xyzzy", None), Wanted("small", "default")),
        (TokenIdsPrompt([1, 2, 3]), Wanted("small", "default")),
        (chat("hello", "hi", PYTHON), Wanted("coder", "code")),
        (chat(PYTHON, "def merge…", "thanks"), Wanted("small", "default")),
        (ChatPrompt(), Wanted("small", "default")),
    ],
)
def test_what_a_prompt_is_for(prompt: Prompt, first: Wanted) -> None:
    assert select(prompt, TABLE)[0] == first


def test_after_its_own_come_the_default_and_then_the_others_each_name_once() -> None:
    assert select(TextPrompt(PYTHON, None), TABLE) == [
        Wanted("coder", "code"),
        Wanted("small", "default"),
        Wanted("large", "complex"),
        Wanted("long", "long_context"),
    ]
    same = SelectionTable(default="small", code="coder", complex="coder")
    assert select(TextPrompt(PYTHON, None), same) == [Wanted("coder", "code"), Wanted("small", "default")]


def test_what_is_not_sure_enough_is_the_defaults() -> None:
    strict = TABLE.model_copy(update={"min_confidence": 1.0})
    text = "Compare these two Python functions in detail."
    assert select(TextPrompt(text, None), strict)[0] == Wanted("small", "default")


@pytest.mark.parametrize(("tokens", "expected"), [(99, None), (100, Wanted("long", "long_context"))])
def test_a_prompt_is_long_by_its_tokens(tokens: int, expected: Wanted | None) -> None:
    assert long_context(tokens, TABLE) == expected
    assert long_context(tokens, TABLE.model_copy(update={"long_context": None})) is None
