"""A `WeirError` as the status that a caller sees, with `google.rpc` details, and back.

    WeirError ── to_status ──► google.rpc.Status ── from_status, from_rpc_error ──► the reason's class, and RemoteError

`to_failure` and `from_failure` are the same for one request among others on a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from weir.inference.v1.error_pb2 import Failure
from weir_chassis.errors import (
    CLASSES,
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unsupported,
    WeirError,
    WorkerLost,
    cut,
    reason_name,
)
from weir_chassis.limits import MAX_STATUS_BYTES

DOMAIN = "weir"


class RemoteError(WeirError):
    """An error that another service gave, its message and details kept as they came.

    What is raised is also of the reason's own class, so that `except Overloaded` sees an overload near and far.
    """

    def __init__(self, status: status_pb2.Status):
        info, retry = _detail(status, error_details_pb2.ErrorInfo()), _detail(status, error_details_pb2.RetryInfo())
        WeirError.__init__(
            self,
            status.message,
            metadata=info.metadata if info else None,
            retry_after=retry.retry_delay.ToTimedelta() if retry else None,
        )
        self.status = status


def to_status(error: WeirError) -> status_pb2.Status:
    """The status a caller sees, details and all."""
    if isinstance(error, RemoteError):
        return error.status
    info = error_details_pb2.ErrorInfo(
        reason=reason_name(error.reason), domain=DOMAIN, metadata=_bounded(error.metadata)
    )
    details: list[Message] = [info]
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details.extend(error.details())
    status = status_pb2.Status(code=error.row.code.value[0], message=error.message, details=[_pack(d) for d in details])
    while status.ByteSize() > MAX_STATUS_BYTES and len(status.details) > 1:
        del status.details[-1]  # the first is `ErrorInfo`, which says what it is
    return status


def to_rpc_status(error: WeirError) -> grpc.Status:
    """`to_status`, as a call is ended with it."""
    rpc: grpc.Status = rpc_status.to_status(to_status(error))
    return rpc


def from_status(status: status_pb2.Status) -> WeirError:
    """The error behind a status of ours; for one without our `ErrorInfo`, the nearest by its code."""
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info is not None and info.domain == DOMAIN and info.reason in _REMOTE:
        return _REMOTE[info.reason](status)
    return _nearest(status)


def from_rpc_error(error: grpc.RpcError) -> WeirError:
    """The error behind a failed call."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status are a stranger's; the status itself counts
        status = None
    if status is None:
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    found = from_status(status)
    if isinstance(found, Cancelled) and not isinstance(found, RemoteError):
        # Who cancels a call itself sees no status of it. This one is gRPC's: the call met a server that was stopping.
        return WorkerLost(f"the server was stopped under the call: {found.message}")
    return found


def wrong_fields(error: WeirError) -> list[str]:
    """The fields of the request that the error names, ours (`prompt.messages[2].role`) and never a client's words."""
    request = _detail(to_status(error), error_details_pb2.BadRequest())
    return [violation.field for violation in request.field_violations] if request else []


def to_failure(error: WeirError) -> Failure:
    return Failure.FromString(to_status(error).SerializeToString())


def from_failure(failure: Failure) -> WeirError:
    return from_status(status_pb2.Status.FromString(failure.SerializeToString()))


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


D = TypeVar("D", bound=Message)


def _detail(status: status_pb2.Status, like: D) -> D | None:
    """The first detail of this type."""
    return next((like for packed in status.details if packed.Unpack(like)), None)


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    """As many whole entries as fit half a status; a value that is too long is cut."""
    kept, room = {}, MAX_STATUS_BYTES // 2
    for key, value in metadata.items():
        short = cut(value, MAX_STATUS_BYTES // 4)
        room -= len(key.encode()) + len(short.encode())
        if room < 0:
            break
        kept[key] = short
    return kept


_REMOTE: Mapping[str, type[RemoteError]] = {
    reason_name(reason): type(f"Remote{cls.__name__}", (RemoteError, cls), {}) for reason, cls in CLASSES.items()
}

# Only these codes arise without our details: gRPC itself or a proxy made the status.
_BY_CODE: Mapping[int, type[WeirError]] = {
    StatusCode.CANCELLED.value[0]: Cancelled,
    StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceeded,
    StatusCode.UNAVAILABLE.value[0]: WorkerLost,
    StatusCode.UNIMPLEMENTED.value[0]: Unsupported,
    StatusCode.RESOURCE_EXHAUSTED.value[0]: Overloaded,
    StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
    StatusCode.PERMISSION_DENIED.value[0]: PermissionDenied,
}


# What grpc.aio makes of a write that meets the end of its call, when it comes to know of the write's failure first:
# `set_internal_error` in grpc/_cython/_cygrpc/aio/call.pyx.pxi. The connection is gone; nobody has a bug.
_CORE_ERROR = "Internal error from Core"


def _nearest(status: status_pb2.Status) -> WeirError:
    known = status.code in code_pb2.Code.values()
    name = code_pb2.Code.Name(status.code) if known else f"code {status.code}"
    if status.code == StatusCode.INTERNAL.value[0] and status.message == _CORE_ERROR:
        return WorkerLost("the connection was lost while it was written to")
    return _BY_CODE.get(status.code, Internal)(f"{name}: {status.message}")
