"""Errors that know their status; `fault_table.py` is the one table that translates them.

    WeirError                       reason ─ TABLE ─ status code, retryable, whose fault
    ├── InvalidArgument             names the field and the limit
    │   ├── PromptTooLong
    │   └── TemplateFailed
    ├── Unsupported   ModelNotFound   NotFound   AlreadyExists   Unauthenticated   PermissionDenied   RevisionMismatch
    ├── Overloaded   QuotaExceeded   SlowConsumer
    ├── Cancelled   DeadlineExceeded
    ├── NoWorker   WorkerLost   Draining   LeaseExpired   DataCorrupt
    └── Internal                    a bug of ours; what an unknown exception becomes at the seam

A service raises these; the interceptor turns them into a status with `google.rpc` details (`to_status`), and a client
turns a status back (`from_status`, `from_rpc_error`).
"""

# ruff: noqa: N818  # an error is named for what is wrong; the suffix would say "error" twenty times

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import ClassVar, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from weir.inference.v1.error_pb2 import ErrorReason, Failure
from weir_chassis.fault_table import TABLE, Row
from weir_chassis.limits import MAX_ERROR_MESSAGE_BYTES, MAX_STATUS_BYTES

DOMAIN = "weir"
_PREFIX = "ERROR_REASON_"


class WeirError(Exception):
    """An error with a place in the table. `message` is safe to show to a client; it never holds a prompt."""

    reason: ClassVar[ErrorReason.ValueType]

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after: timedelta | None = None
    ):
        super().__init__(message)
        self.message = _cut(message, MAX_ERROR_MESSAGE_BYTES)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    @property
    def row(self) -> Row:
        return TABLE[self.reason]

    def details(self) -> list[Message]:
        """The `google.rpc` details besides `ErrorInfo` and `RetryInfo`."""
        return []


class InvalidArgument(WeirError):
    """A field of the request is wrong. Says which, and its limit."""

    reason = ErrorReason.ERROR_REASON_INVALID_ARGUMENT

    def __init__(self, field: str, description: str, *, metadata: Mapping[str, str] | None = None):
        super().__init__(f"{field}: {description}", metadata=metadata)
        self.field, self.description = field, description

    def details(self) -> list[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.description)
        return [error_details_pb2.BadRequest(field_violations=[violation])]


class PromptTooLong(InvalidArgument):
    """Prompt and wanted tokens do not fit the context."""

    reason = ErrorReason.ERROR_REASON_PROMPT_TOO_LONG

    def __init__(self, field: str, tokens: int, limit: int):
        super().__init__(
            field, f"{tokens} tokens, the limit is {limit}", metadata={"tokens": str(tokens), "limit": str(limit)}
        )


class TemplateFailed(InvalidArgument):
    """The chat template refused the messages, or is not valid itself."""

    reason = ErrorReason.ERROR_REASON_TEMPLATE_FAILED


class Unsupported(WeirError):
    """A field asks for what this deployment cannot do."""

    reason = ErrorReason.ERROR_REASON_UNSUPPORTED


class _Resource(WeirError):
    """An error about a named thing, which `ResourceInfo` repeats."""

    kind = "resource"

    def __init__(self, name: str, message: str = "", *, metadata: Mapping[str, str] | None = None):
        super().__init__(message or f"{self.kind} {name!r} not found", metadata=metadata)
        self.name = name

    def details(self) -> list[Message]:
        return [error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name)]


class ModelNotFound(_Resource):
    reason, kind = ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, "model"

    def __init__(self, model: str, known: list[str]):
        message = f"model {model!r} is not served here; known: {', '.join(sorted(known)) or 'none'}"
        super().__init__(model, message, metadata={"known": ",".join(sorted(known))})


class NotFound(_Resource):
    reason = ErrorReason.ERROR_REASON_NOT_FOUND


class AlreadyExists(_Resource):
    reason = ErrorReason.ERROR_REASON_ALREADY_EXISTS


class Unauthenticated(WeirError):
    reason = ErrorReason.ERROR_REASON_UNAUTHENTICATED


class PermissionDenied(WeirError):
    reason = ErrorReason.ERROR_REASON_PERMISSION_DENIED


class RevisionMismatch(WeirError):
    """Two services hold different revisions of one model."""

    reason = ErrorReason.ERROR_REASON_REVISION_MISMATCH


class Overloaded(WeirError):
    """No room now; the same request may succeed later."""

    reason = ErrorReason.ERROR_REASON_OVERLOADED


class QuotaExceeded(WeirError):
    """The tenant's own limit is reached."""

    reason = ErrorReason.ERROR_REASON_QUOTA_EXCEEDED

    def __init__(self, subject: str, description: str, *, retry_after: timedelta | None = None):
        super().__init__(f"{subject}: {description}", retry_after=retry_after)
        self.subject, self.description = subject, description

    def details(self) -> list[Message]:
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.subject, description=self.description)
        return [error_details_pb2.QuotaFailure(violations=[violation])]


class SlowConsumer(WeirError):
    reason = ErrorReason.ERROR_REASON_SLOW_CONSUMER


class Cancelled(WeirError):
    reason = ErrorReason.ERROR_REASON_CANCELLED


class DeadlineExceeded(WeirError):
    reason = ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED


class NoWorker(WeirError):
    """No healthy worker can serve this."""

    reason = ErrorReason.ERROR_REASON_NO_WORKER


class WorkerLost(WeirError):
    """The worker went away under a running request, or cannot be reached."""

    reason = ErrorReason.ERROR_REASON_WORKER_LOST


class Draining(WeirError):
    reason = ErrorReason.ERROR_REASON_DRAINING


class LeaseExpired(WeirError):
    reason = ErrorReason.ERROR_REASON_LEASE_EXPIRED


class DataCorrupt(WeirError):
    reason = ErrorReason.ERROR_REASON_DATA_CORRUPT


class Internal(WeirError):
    """A bug of ours."""

    reason = ErrorReason.ERROR_REASON_INTERNAL


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


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The reason as `ErrorInfo.reason` carries it: `OVERLOADED`."""
    return ErrorReason.Name(reason).removeprefix(_PREFIX)


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
    if info is not None and info.domain == DOMAIN and _PREFIX + info.reason in _REMOTE:
        return _REMOTE[_PREFIX + info.reason](status)
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
        short = _cut(value, MAX_STATUS_BYTES // 4)
        room -= len(key.encode()) + len(short.encode())
        if room < 0:
            break
        kept[key] = short
    return kept


def _cut(text: str, limit_bytes: int) -> str:
    """The text as valid UTF-8 of at most this many bytes."""
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _leaves(of: type[WeirError]) -> Iterator[type[WeirError]]:
    for cls in of.__subclasses__():
        if "reason" in vars(cls):
            yield cls
        yield from _leaves(cls)


CLASSES: Mapping[ErrorReason.ValueType, type[WeirError]] = {cls.reason: cls for cls in _leaves(WeirError)}
_REMOTE: Mapping[str, type[RemoteError]] = {
    ErrorReason.Name(reason): type(f"Remote{cls.__name__}", (RemoteError, cls), {}) for reason, cls in CLASSES.items()
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
