"""How instances are announced: on which subjects, and what is believed of what comes. Pure."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from weir.fleet.v1.instance_pb2 import Instance, InstanceKind
from weir_chassis.durations import seconds_of

ASK: Final = "weir.fleet.ask"
# Of every kind and instance.
FOLLOWED: Final = "weir.fleet.*.*"
# Of an announcement, so that a sender's mistake costs its hearers little: the contract's own bounds stay far below.
_MAX_BYTES: Final = 65_536
_MAX_NAME_BYTES, _MAX_ADDRESS_BYTES, _MAX_CAPABILITIES, _MAX_LEASE_SECONDS = 64, 256, 64, 3600


def kind_name(kind: InstanceKind.ValueType) -> str:
    """`executor`, as it is called everywhere."""
    return InstanceKind.Name(kind).removeprefix("INSTANCE_KIND_").lower()


def subject(instance: Instance) -> str:
    return f"weir.fleet.{kind_name(instance.kind)}.{instance.instance_id}"


def parse(payload: bytes) -> Instance | None:
    """What was announced; None for what is not within the contract."""
    if len(payload) > _MAX_BYTES:
        return None
    try:
        instance = Instance.FromString(payload)
    except DecodeError:
        return None
    return instance if _is_sound(instance) else None


def lease_seconds(instance: Instance) -> float:
    """How long it holds from when it was heard; 0: it leaves."""
    return seconds_of(instance.lease)


def _is_sound(instance: Instance) -> bool:
    return (
        instance.kind in InstanceKind.values()
        and _has_bytes(instance.instance_id, 1, _MAX_NAME_BYTES)
        and _has_bytes(instance.address, 1, _MAX_ADDRESS_BYTES)
        and _has_bytes(instance.region, 0, _MAX_NAME_BYTES)
        and len(instance.capabilities) <= _MAX_CAPABILITIES
        and all(_has_bytes(name, 1, _MAX_NAME_BYTES) for name in instance.capabilities)
        and 0 <= lease_seconds(instance) <= _MAX_LEASE_SECONDS
    )


def _has_bytes(text: str, least: int, most: int) -> bool:
    return least <= len(text.encode()) <= most
