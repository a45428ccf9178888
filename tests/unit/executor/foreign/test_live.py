"""What a request took, and of what: by the times at which it was submitted, begun and answered."""

from __future__ import annotations

from contract.engine_contract import prompt, request
from weir_executor.foreign.live import NOTHING_LEFT, Left, LiveRequest, News, begin


class Cursor:
    def advance(self, told: News, /) -> News:
        return told


def live(n: int = 1) -> LiveRequest:
    return begin(request(1, prompt(40), 9, n=n), lambda _: Cursor(), now=10.0)


def test_times_are_those_between_its_steps() -> None:
    asked = live()
    asked.begun_at, asked.first_token_at = 12.0, 15.0
    end = asked.end(22.0, NOTHING_LEFT)
    assert (end.queue_seconds, end.prefill_seconds, end.decode_seconds) == (2.0, 3.0, 7.0)


def test_what_did_not_come_took_no_time() -> None:
    end = live().end(13.0, NOTHING_LEFT)
    assert (end.queue_seconds, end.prefill_seconds, end.decode_seconds) == (3.0, 0.0, 0.0)
    begun = live()
    begun.begun_at = 11.0
    end = begun.end(13.0, NOTHING_LEFT)
    assert (end.queue_seconds, end.prefill_seconds, end.decode_seconds) == (1.0, 2.0, 0.0)


def test_what_was_found_is_told_and_what_was_fetched_is_not_told_twice() -> None:
    asked = live()
    assert asked.end(1.0, NOTHING_LEFT).cached_prompt_tokens == 0
    asked.cached_tokens = 32
    assert asked.end(1.0, NOTHING_LEFT).cached_prompt_tokens == 32
    asked.cached_tokens = 4000  # whatever it means by it
    assert asked.end(1.0, NOTHING_LEFT).cached_prompt_tokens == 40
    asked.fetched = True
    end = asked.end(1.0, Left(loaded_tokens=32))
    assert (end.cached_prompt_tokens, end.loaded_prompt_tokens) == (0, 32)


def test_places_are_taken_from_the_beginning_to_the_last_word() -> None:
    asked = live(n=3)
    assert (asked.num_in_engine, asked.num_wanted) == (0, 3)
    asked.begun_at = 11.0
    assert asked.num_in_engine == 3, "those that let another go ahead too"
    asked.outputs[0].result = object()
    assert asked.stop(0) == [asked.outputs[0]]
    assert asked.num_in_engine == 3, "until the engine has said its last word on it"
    asked.outputs[0].result = None
    assert (asked.num_in_engine, asked.num_wanted) == (2, 2)
