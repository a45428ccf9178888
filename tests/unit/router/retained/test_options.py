"""What is kept, for how long, and which requests are the same."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest
from weir_chassis.errors import InvalidArgument
from weir_router.retained.options import Body, RetentionLimits, fingerprint, retention_of

LIMITS = RetentionLimits(max_seconds=100, default_seconds=5, max_streams=1, max_bytes=1, max_stream_bytes=1)


def asking(**routing: object) -> GenerateRequest:
    return GenerateRequest(text="x", routing=RoutingOptions(**routing))  # type: ignore[arg-type]


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    assert retention_of(GenerateRequest(text="x"), LIMITS) is None
    assert retention_of(asking(session="s"), LIMITS) is None


def test_how_long_is_what_the_client_says_or_the_default_of_a_key() -> None:
    retained = retention_of(asking(retain=Duration(seconds=2, nanos=500_000_000)), LIMITS)
    assert retained is not None
    assert (retained.seconds, retained.key, retained.fingerprint) == (2.5, "", b"")
    keyed = retention_of(asking(idempotency_key="k"), LIMITS)
    assert keyed is not None
    assert (keyed.seconds, keyed.key, len(keyed.fingerprint)) == (5, "k", 32)


def test_more_than_the_limit_is_refused_with_its_field() -> None:
    with pytest.raises(InvalidArgument, match=r"routing.retain: must be at most 100 s, is 101 s"):
        retention_of(asking(retain=Duration(seconds=101)), LIMITS)


@given(st.dictionaries(st.integers(0, 1000), st.floats(-100, 100, width=32), max_size=8), st.randoms())
def test_the_order_in_which_a_client_writes_a_map_is_no_difference(biases: dict[int, float], random: object) -> None:
    shuffled = dict(sorted(biases.items(), key=lambda _: random.random()))  # type: ignore[attr-defined]
    bodies = [GenerateRequest(text="x", sampling=SamplingParameters(logit_bias=map_)) for map_ in (biases, shuffled)]
    assert fingerprint(bodies[0]) == fingerprint(GenerateRequest.FromString(bodies[1].SerializeToString()))


def test_bodies_are_the_same_but_for_how_they_are_kept_and_sent() -> None:
    plain = fingerprint(GenerateRequest(text="x"))
    assert fingerprint(asking(idempotency_key="k", retain=Duration(seconds=3))) == plain
    assert fingerprint(GenerateRequest(text="x", batch_events=True)) == plain
    others: tuple[Body, ...] = (
        GenerateRequest(text="y"),
        asking(session="s"),
        GenerateRequest(text="x", sampling=SamplingParameters(seed=0)),
        ChatRequest(),
        GenerateRequest(),
    )
    assert len({plain, *(fingerprint(other) for other in others)}) == 6
