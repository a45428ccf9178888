"""`weir.fleet.v1.Instance` → `Traits`, nothing else. Pure."""

from __future__ import annotations

from weir.fleet.v1 import instance_pb2 as pb
from weir_router.fleet.views import Price, Traits


def traits_of(instance: pb.Instance) -> Traits:
    return Traits(
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        region=instance.region,
        price=_price(instance.price) if instance.HasField("price") else None,
        # One that is no share is as if nobody had said.
        weight=instance.weight if instance.weight > 0 else 1.0,
        capabilities=frozenset(instance.capabilities),
        capacity=instance.capacity,
    )


def _price(told: pb.Price) -> Price:
    return Price(told.prompt_micros, told.cached_prompt_micros, told.completion_micros, told.currency)
