"""What an instance says, as policies see it."""

from __future__ import annotations

from weir.fleet.v1.instance_pb2 import Instance
from weir.fleet.v1.instance_pb2 import Price as ProtoPrice
from weir_router.fleet.traits import traits_of
from weir_router.fleet.views import Price, Traits


def test_what_was_not_said_is_the_default() -> None:
    assert traits_of(Instance()) == Traits()


def test_what_was_said_is_kept() -> None:
    price = ProtoPrice(prompt_micros=1, cached_prompt_micros=2, completion_micros=3, currency="EUR")
    said = Instance(
        instance_id="i", epoch=5, region="eu", price=price, weight=2.5, capabilities=["guides", "guides"], capacity=9
    )
    assert traits_of(said) == Traits("i", 5, "eu", Price(1, 2, 3, "EUR"), 2.5, frozenset({"guides"}), 9)


def test_a_weight_that_is_no_share_is_none() -> None:
    assert traits_of(Instance(weight=-1.0)).weight == traits_of(Instance(weight=float("nan"))).weight == 1.0
