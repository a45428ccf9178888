from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import Receipt
from weir_router.bill import bill
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.views import Price
from weir_router.legs import Leg, Progress

CHEAP, DEAR = Price(1_000_000, 500_000, 2_000_000, "EUR"), Price(10_000_000, 5_000_000, 20_000_000, "EUR")


@dataclass
class Somewhere:
    address: str = "e"


def leg(price: Price | None, drawn: int = 0) -> Leg:
    executor: Any = Somewhere()
    return Leg(executor, Outstanding().reserve(1), price, drawn)


def progress(*legs: Leg, **fields: Any) -> Progress:
    return Progress(legs=list(legs), **fields)


def test_one_worker_is_paid_for_prompt_and_answer_and_less_for_what_was_cached() -> None:
    usage = Usage(prompt_tokens=10, cached_prompt_tokens=4, completion_tokens=3)
    assert bill(progress(leg(CHEAP, 3)), usage) == (6 + 2 + 6, "EUR")


def test_tokens_that_the_client_was_not_given_are_not_charged() -> None:
    assert bill(progress(leg(CHEAP, 9)), Usage(prompt_tokens=1, completion_tokens=2)) == (1 + 4, "EUR")


def test_who_was_lost_before_it_drew_anything_is_not_paid() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=3)
    assert bill(progress(leg(DEAR), leg(CHEAP, 3)), usage) == (10 + 6, "EUR")


def test_the_prompt_is_charged_once_and_tokens_by_whoever_drew_them() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    assert bill(progress(leg(DEAR, 2), leg(CHEAP, 3)), usage) == (100 + 40 + 6, "EUR")


def test_an_answer_without_a_token_costs_its_prompt() -> None:
    assert bill(progress(leg(DEAR), leg(CHEAP)), Usage(prompt_tokens=10)) == (10, "EUR")


def test_what_is_not_known_is_not_made_up() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    dollars = Price(1, 1, 1, "USD")
    assert bill(progress(leg(None, 5)), usage) == (None, "")
    assert bill(progress(leg(CHEAP, 2), leg(None, 3)), usage) == (None, "")
    assert bill(progress(leg(CHEAP, 2), leg(dollars, 3)), usage) == (None, "")
    guessed = Usage(prompt_tokens=10, completion_tokens=5, estimated=True)
    assert bill(progress(leg(CHEAP), delegated=True), guessed) == (None, "")


def test_who_takes_all_of_it_counts_itself() -> None:
    usage = Usage(prompt_tokens=10, cached_prompt_tokens=10, completion_tokens=5)
    assert bill(progress(leg(DEAR, 1), leg(CHEAP), delegated=True), usage) == (5 + 10, "EUR")


def test_another_router_says_what_it_cost() -> None:
    told = Receipt(cost_micros=0, currency="USD")
    assert bill(progress(leg(CHEAP), delegated=True, told=told), Usage(prompt_tokens=9)) == (0, "USD")
    assert bill(progress(leg(CHEAP), delegated=True, told=Receipt()), Usage(prompt_tokens=9)) == (9, "EUR")
