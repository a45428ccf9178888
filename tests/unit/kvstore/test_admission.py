from __future__ import annotations

import random

import pytest

from unit.kvstore.making import address
from weir_kvstore.policies.admission import ADMISSIONS, AdmissionName, SavedSeconds, SecondUse, make_admission
from weir_kvstore.record import Record


def record(number: int, *, seconds: float = 0.0, size_bytes: int = 1000) -> Record:
    return Record(address(number), b"", size_bytes, 0, prefill_seconds=seconds)


def far(number: int) -> Record:
    """Hashes as they are in fact: all bits drawn."""
    return Record(address(random.Random(number).getrandbits(128)), b"", 1000, 0)


@pytest.mark.parametrize("name", list(ADMISSIONS))
def test_the_second_time_everything_is_let_in(name: AdmissionName) -> None:
    admission = make_admission(name)
    admission.admits(far(1))
    assert admission.admits(far(1))


def test_all_are_let_in() -> None:
    assert all(make_admission("all").admits(far(number)) for number in range(100))


def test_what_is_offered_once_stays_out() -> None:
    admission = SecondUse(addresses=1000)
    let_in = sum(admission.admits(far(number)) for number in range(10_000))
    assert let_in < 100  # strangers whose four bits were set by others
    assert all(admission.admits(far(number)) for number in range(9_000, 10_000))


def test_what_was_offered_long_ago_is_forgotten() -> None:
    admission = SecondUse(addresses=100)
    assert not admission.admits(far(0))
    for number in range(1, 250):
        admission.admits(far(number))
    assert not admission.admits(far(0))


def test_a_namespace_is_part_of_the_address() -> None:
    admission = SecondUse()
    assert not admission.admits(Record(address(7, b"a" * 16), b"", 10, 0))
    assert not admission.admits(Record(address(7, b"b" * 16), b"", 10, 0))


def test_what_saves_less_than_what_would_go_stays_out() -> None:
    admission = SavedSeconds()
    assert admission.admits(record(1, seconds=0.001))  # nothing had to go yet
    for number in range(100):
        admission.evicted(record(number, seconds=0.010))
    assert not admission.admits(record(1, seconds=0.005))
    assert admission.admits(record(2, seconds=0.020))
    assert admission.admits(record(3, seconds=0.005, size_bytes=100))  # per byte it is more
    assert admission.admits(record(4))  # nobody told


def test_the_threshold_follows_what_goes_and_relents() -> None:
    admission = SavedSeconds()
    for number in range(100):
        admission.evicted(record(number, seconds=0.010))
        admission.evicted(record(number))  # tells nothing
    assert admission.threshold == pytest.approx(1e-5, rel=0.01)
    refusals = 0
    while not admission.admits(record(1, seconds=0.005)):
        refusals += 1
    assert 500 < refusals < 1000
    for number in range(100):
        admission.evicted(record(number, seconds=0.001))
    assert admission.threshold == pytest.approx(1e-6, rel=0.02)
