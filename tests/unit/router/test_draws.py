"""Chance as a function: even, and the same everywhere."""

from __future__ import annotations

from weir_router.policies.draws import mix, name_bits, spread, unit


def test_the_mixing_is_that_of_the_paper() -> None:
    """The first numbers that SplitMix64 gives from the seed 1234567: Vigna's reference implementation."""
    golden = 0x9E3779B97F4A7C15
    found = [mix(1234567 + golden * step) for step in range(5)]
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_are_even() -> None:
    drawn = [unit(mix(number)) for number in range(10_000)]
    assert all(0.0 <= one < 1.0 for one in drawn)
    tenths = [sum(int(one * 10) == tenth for one in drawn) for tenth in range(10)]
    assert all(900 < count < 1100 for count in tenths), tenths


def test_workers_of_one_request_and_requests_of_one_worker_are_spread_evenly() -> None:
    workers = [spread(mix(5) ^ name_bits(f"10.0.0.{i}:7700")) for i in range(10_000)]
    requests = [spread(mix(i) ^ name_bits("10.0.0.1:7700")) for i in range(10_000)]
    for drawn in (workers, requests):
        tenths = [sum(int(one * 10) == tenth for one in drawn) for tenth in range(10)]
        assert all(900 < count < 1100 for count in tenths), tenths


def test_a_name_has_the_same_bits_in_every_process() -> None:
    """As `b2sum -l 64` has it, read from its lowest byte."""
    assert name_bits("10.0.0.1:7700").to_bytes(8, "little").hex() == "b04cd6d21dbdb735"
