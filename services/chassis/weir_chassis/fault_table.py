"""The one table: reason, status code, retryable, whose fault; written out in weir/inference/v1/error.proto. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from grpc import StatusCode

from weir.inference.v1.error_pb2 import ErrorReason


class Fault(Enum):
    """Whose fault an error is. Only `SERVER` may count against a worker."""

    CLIENT = "client"
    SERVER = "server"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Row:
    code: StatusCode
    retryable: bool
    fault: Fault


_C, _S, _N = Fault.CLIENT, Fault.SERVER, Fault.NONE
TABLE: Mapping[ErrorReason.ValueType, Row] = {
    ErrorReason.ERROR_REASON_INVALID_ARGUMENT: Row(StatusCode.INVALID_ARGUMENT, False, _C),
    ErrorReason.ERROR_REASON_PROMPT_TOO_LONG: Row(StatusCode.INVALID_ARGUMENT, False, _C),
    ErrorReason.ERROR_REASON_TEMPLATE_FAILED: Row(StatusCode.INVALID_ARGUMENT, False, _C),
    ErrorReason.ERROR_REASON_UNSUPPORTED: Row(StatusCode.UNIMPLEMENTED, False, _C),
    ErrorReason.ERROR_REASON_MODEL_NOT_FOUND: Row(StatusCode.NOT_FOUND, False, _C),
    ErrorReason.ERROR_REASON_NOT_FOUND: Row(StatusCode.NOT_FOUND, False, _C),
    ErrorReason.ERROR_REASON_ALREADY_EXISTS: Row(StatusCode.ALREADY_EXISTS, False, _C),
    ErrorReason.ERROR_REASON_UNAUTHENTICATED: Row(StatusCode.UNAUTHENTICATED, False, _C),
    ErrorReason.ERROR_REASON_PERMISSION_DENIED: Row(StatusCode.PERMISSION_DENIED, False, _C),
    ErrorReason.ERROR_REASON_REVISION_MISMATCH: Row(StatusCode.FAILED_PRECONDITION, False, _S),
    ErrorReason.ERROR_REASON_OVERLOADED: Row(StatusCode.RESOURCE_EXHAUSTED, True, _N),
    ErrorReason.ERROR_REASON_QUOTA_EXCEEDED: Row(StatusCode.RESOURCE_EXHAUSTED, True, _C),
    ErrorReason.ERROR_REASON_SLOW_CONSUMER: Row(StatusCode.RESOURCE_EXHAUSTED, False, _C),
    ErrorReason.ERROR_REASON_CANCELLED: Row(StatusCode.CANCELLED, False, _C),
    ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED: Row(StatusCode.DEADLINE_EXCEEDED, False, _N),
    ErrorReason.ERROR_REASON_NO_WORKER: Row(StatusCode.UNAVAILABLE, True, _S),
    ErrorReason.ERROR_REASON_WORKER_LOST: Row(StatusCode.UNAVAILABLE, True, _S),
    ErrorReason.ERROR_REASON_DRAINING: Row(StatusCode.UNAVAILABLE, True, _N),
    ErrorReason.ERROR_REASON_LEASE_EXPIRED: Row(StatusCode.ABORTED, True, _N),
    ErrorReason.ERROR_REASON_DATA_CORRUPT: Row(StatusCode.DATA_LOSS, True, _S),
    ErrorReason.ERROR_REASON_INTERNAL: Row(StatusCode.INTERNAL, True, _S),
}
