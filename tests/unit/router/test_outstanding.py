"""What an executor owes: ours exactly, others' as far as it reports."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.fleet.outstanding import Outstanding


def test_a_report_counts_only_what_is_not_ours() -> None:
    count = Outstanding()
    reservation = count.reserve(100)
    count.report(130)
    assert (count.routed_tokens, count.foreign_tokens, count.routed_requests) == (100, 30, 1)
    reservation.spend(60)
    assert (count.routed_tokens, count.foreign_tokens) == (40, 30)
    count.report(20)
    assert count.foreign_tokens == 0
    count.forget()
    assert (count.routed_tokens, count.foreign_tokens) == (40, 0)


def test_prompts_that_are_not_computed_are_counted_until_they_are() -> None:
    count = Outstanding()
    reservation = count.reserve(100, prefill_tokens=60)
    other = count.reserve(50, prefill_tokens=50)
    count.report(200, outstanding_prefill_tokens=150)
    assert (count.routed_prefill_tokens, count.foreign_prefill_tokens) == (110, 40)
    reservation.prefilled()
    reservation.spend(60)
    assert (count.routed_prefill_tokens, count.routed_tokens) == (50, 90)
    other.release()
    reservation.release()
    assert (count.routed_prefill_tokens, count.routed_tokens) == (0, 0)
    count.forget()
    assert count.foreign_prefill_tokens == 0


def test_each_change_of_a_count_is_noted() -> None:
    count, noted = Outstanding(), [0]
    reservation = count.reserve(100, prefill_tokens=60)
    noted.append(count.changes.of_counts)
    reservation.spend(10)
    noted.append(count.changes.of_counts)
    reservation.prefilled()
    noted.append(count.changes.of_counts)
    assert noted == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(1, 100), st.lists(st.integers(0, 60), max_size=5)), max_size=8))
def test_whatever_is_spent_the_count_is_what_is_left_and_ends_at_zero(requests: list[tuple[int, list[int]]]) -> None:
    count = Outstanding()
    reservations = [count.reserve(tokens) for tokens, _ in requests]
    for reservation, (_, spends) in zip(reservations, requests, strict=True):
        for tokens in spends:
            reservation.spend(tokens)
    assert count.routed_tokens == sum(max(0, tokens - sum(spends)) for tokens, spends in requests)
    for reservation in [*reservations, *reservations]:
        reservation.release()
    assert (count.routed_tokens, count.routed_requests) == (0, 0)
