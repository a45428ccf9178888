"""What a request costs on a worker, by the worker's own price. Pure arithmetic in whole numbers, rounded up once."""

from __future__ import annotations

from typing import Final

from weir_router.fleet.views import Price

_TOKENS_OF_PRICE: Final = 1_000_000


def cost_micros(price: Price, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
    """In millionths of a unit of the price's currency. `cached_tokens` are those of the prompt that cost less."""
    return -(-_cost(price, prompt_tokens, cached_tokens, completion_tokens) // _TOKENS_OF_PRICE)


def exact_cost_micros(price: Price, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    """The same, not rounded: what prices of small requests are compared by."""
    return _cost(price, prompt_tokens, cached_tokens, completion_tokens) / _TOKENS_OF_PRICE


def _cost(price: Price, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
    """In millionths of a millionth."""
    assert 0 <= cached_tokens <= prompt_tokens, (cached_tokens, prompt_tokens)
    return (
        (prompt_tokens - cached_tokens) * price.prompt_micros
        + cached_tokens * price.cached_prompt_micros
        + completion_tokens * price.completion_micros
    )
