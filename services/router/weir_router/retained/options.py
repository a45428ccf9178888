"""What a request asks of its stream's keeping. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest
from weir_chassis.durations import seconds_of
from weir_chassis.errors import InvalidArgument

Body = GenerateRequest | ChatRequest


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """Of one router. `max_seconds`: that a client may ask for; `default_seconds`: for a key that comes without.

    Beyond `max_streams` and `max_bytes` the oldest streams that are over give way, then the beginnings of the longest;
    a stream of more than `max_stream_bytes` loses its beginning.
    """

    max_seconds: float
    default_seconds: float
    max_streams: int
    max_bytes: int
    max_stream_bytes: int


@dataclass(frozen=True, slots=True)
class Retention:
    """`seconds`: without a reader, and after its end. `key`: the idempotency key; empty: none."""

    seconds: float
    key: str
    fingerprint: bytes


def retention_of(body: Body, limits: RetentionLimits) -> Retention | None:
    """None for a request whose stream ends with its call. Raises InvalidArgument for more than the router's limit."""
    routing = body.routing
    if not routing.HasField("retain") and not routing.idempotency_key:
        return None
    seconds = limits.default_seconds
    if routing.HasField("retain"):
        seconds = seconds_of(routing.retain)
    if seconds > limits.max_seconds:
        raise InvalidArgument("routing.retain", f"must be at most {limits.max_seconds:g} s, is {seconds:g} s")
    return Retention(seconds, routing.idempotency_key, fingerprint(body) if routing.idempotency_key else b"")


def fingerprint(body: Body) -> bytes:
    """The same for bodies that ask for the same, however long it is to be kept and however it is sent: 32 bytes."""
    asked = type(body)()
    asked.CopyFrom(body)  # type: ignore[arg-type]  # of the same type
    asked.ClearField("batch_events")
    asked.routing.ClearField("idempotency_key")
    asked.routing.ClearField("retain")
    if not asked.routing.ByteSize():
        asked.ClearField("routing")
    # By field number, maps by key. What this router does not know of stays in it as it came.
    return sha256(body.DESCRIPTOR.full_name.encode() + b"\0" + asked.SerializeToString(deterministic=True)).digest()
