"""Handoffs and roles between the contract and this room. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from weir.executor.v1 import executor_pb2 as pb
from weir.kvstore.v1.block_hash import DIGEST_BYTES
from weir_chassis.errors import InvalidArgument
from weir_executor.handoff.role import Role
from weir_executor.handoff.table import HeldHandoff
from weir_executor.handoff.take_over import Offered
from weir_executor.request import GenerationRequest

_MAX_ID_BYTES, _MAX_ADDRESS_BYTES = 128, 256
_MAX_FORMAT_BYTES, _MAX_STATE_BYTES = 64, 1 << 20

ROLES: Mapping[Role, pb.ExecutorRole.ValueType] = {
    Role.PREFILL: pb.EXECUTOR_ROLE_PREFILL,
    Role.DECODE: pb.EXECUTOR_ROLE_DECODE,
    Role.BOTH: pb.EXECUTOR_ROLE_BOTH,
}


def to_offered(submit: pb.Submit, request: GenerationRequest) -> Offered | None:
    """What the request takes over, if anything. Raises InvalidArgument naming the field and its limit."""
    if not submit.HasField("take_over"):
        return None
    handoff = submit.take_over
    if submit.hand_off:
        raise InvalidArgument("take_over", "with hand_off: what is taken over is not handed on")
    _check_sizes(handoff)
    if not handoff.num_blocks:
        return None
    if handoff.num_blocks > len(request.block_hashes):
        known = f"{len(request.block_hashes)} block_hashes"
        raise InvalidArgument("take_over.num_blocks", f"{handoff.num_blocks} of a request with {known}")
    if not handoff.handoff_id or not handoff.address:
        raise InvalidArgument("take_over", "handoff_id and address are needed where there are blocks")
    if len(handoff.namespace) != DIGEST_BYTES:
        raise InvalidArgument("take_over.namespace", f"{len(handoff.namespace)} bytes; {DIGEST_BYTES}")
    state_format, state = handoff.state_format, handoff.state
    return Offered(handoff.handoff_id, handoff.address, handoff.namespace, handoff.num_blocks, state_format, state)


def _check_sizes(handoff: pb.Handoff) -> None:
    sizes = {
        "handoff_id": (len(handoff.handoff_id.encode()), _MAX_ID_BYTES),
        "address": (len(handoff.address.encode()), _MAX_ADDRESS_BYTES),
        "state_format": (len(handoff.state_format.encode()), _MAX_FORMAT_BYTES),
        "state": (len(handoff.state), _MAX_STATE_BYTES),
    }
    for name, (size, limit) in sizes.items():
        if size > limit:
            raise InvalidArgument(f"take_over.{name}", f"longer than {limit} bytes")


def to_handoff(held: HeldHandoff | None, lease_seconds: float) -> pb.Handoff:
    """None: the outputs go on elsewhere, and no block waits for them."""
    if held is None:
        return pb.Handoff()
    lease = Duration()
    lease.FromMilliseconds(round(lease_seconds * 1e3))
    return pb.Handoff(
        handoff_id=held.handoff_id,
        namespace=held.namespace,
        num_blocks=len(held.block_hashes),
        lease=lease,
        state_format=held.state_format if held.state else "",
        state=held.state,
    )
