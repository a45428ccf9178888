"""What a request cost, by the prices of those who have worked on it. Pure.

The prompt is charged once, by whoever drew the first token after it, and each token by whoever drew it, as far as the
client was given it: what a lost worker had computed for nobody is not charged. Whoever takes all of a request counts
itself, and another router says what it cost there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weir.inference.v1.output_pb2 import Usage
from weir_router.fleet.views import Price
from weir_router.legs import Leg, Progress
from weir_router.policies.price import cost_micros

Part = tuple[Price | None, int, int]


def bill(progress: Progress, usage: Usage) -> tuple[int | None, str]:
    """In millionths of a unit of a currency. None: one has no price, or another currency, or has not counted."""
    if progress.told is not None and progress.told.HasField("cost_micros"):
        return progress.told.cost_micros, progress.told.currency
    if usage.estimated:
        return None, ""
    parts = list(_parts(progress, usage))
    prices = [price for price, _, _ in parts if price is not None]
    if len(prices) < len(parts) or len({price.currency for price in prices}) != 1:
        return None, ""
    cached = usage.cached_prompt_tokens
    total = sum(
        cost_micros(price, prompt, min(cached, prompt), completion) for price, prompt, completion in parts if price
    )
    return total, prices[0].currency


def _parts(progress: Progress, usage: Usage) -> Iterator[Part]:
    """Each price with the tokens of the prompt and those of the answer that it is for."""
    if progress.delegated:
        yield progress.legs[-1].price, usage.prompt_tokens, usage.completion_tokens
        return
    prompt, left = usage.prompt_tokens, usage.completion_tokens
    for leg in _at_work(progress.legs):
        completion = min(leg.drawn_tokens, left)
        yield leg.price, prompt, completion
        prompt, left = 0, left - completion


def _at_work(legs: Sequence[Leg]) -> Sequence[Leg]:
    return [leg for leg in legs if leg.drawn_tokens] or legs[-1:]
