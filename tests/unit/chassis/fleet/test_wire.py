"""What is believed of an announcement: what is within the contract, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir_chassis.fleet.wire import kind_name, lease_seconds, parse, subject


def instance(**changes: object) -> Instance:
    values: dict[str, object] = {"instance_id": "i", "address": "e:1", "kind": InstanceKind.INSTANCE_KIND_EXECUTOR}
    return Instance(**(values | changes))  # type: ignore[arg-type]


def test_what_is_sound_is_believed() -> None:
    said = instance(region="r" * 64, capabilities=["c"] * 64)
    said.lease.FromMilliseconds(2500)
    assert parse(said.SerializeToString()) == said
    assert (lease_seconds(said), subject(said), kind_name(said.kind)) == (2.5, "weir.fleet.executor.i", "executor")


@pytest.mark.parametrize(
    "changes",
    [
        {"instance_id": ""},
        {"instance_id": "i" * 65},
        {"address": ""},
        {"address": "a" * 257},
        {"region": "ü" * 33},
        {"capabilities": ["c"] * 65},
        {"capabilities": [""]},
        {"kind": 99},
    ],
)
def test_what_breaks_the_contract_is_not(changes: dict[str, object]) -> None:
    assert parse(instance(**changes).SerializeToString()) is None


def test_a_lease_has_a_bound_and_is_not_negative() -> None:
    for seconds in (-1, 3601):
        said = instance()
        said.lease.FromSeconds(seconds)
        assert parse(said.SerializeToString()) is None
    assert parse(instance(version="v" * 70_000).SerializeToString()) is None


@given(st.binary(max_size=200))
def test_whatever_comes_is_an_instance_or_nothing(payload: bytes) -> None:
    said = parse(payload)
    assert said is None or 1 <= len(said.instance_id.encode()) <= 64
