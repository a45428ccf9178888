from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1 import error_pb2
from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis import errors
from weir_chassis.fault_table import TABLE
from weir_chassis.limits import MAX_ERROR_MESSAGE_BYTES, MAX_STATUS_BYTES

REASONS = [reason for reason in ErrorReason.values() if reason != ErrorReason.ERROR_REASON_UNSPECIFIED]
ROW = re.compile(r"^//   ([A-Z_]+) +([A-Z_]+) +(yes|no) +(client|server|none)\b", re.MULTILINE)

EXAMPLES: list[errors.WeirError] = [
    errors.InvalidArgument("sampling.temperature", "3 is above the limit of 2"),
    errors.PromptTooLong("token_ids", 9000, 8192),
    errors.TemplateFailed("messages", "roles must alternate"),
    errors.Unsupported("no images here"),
    errors.ModelNotFound("m", ["b", "a"]),
    errors.NotFound("lease-1"),
    errors.AlreadyExists("req-1", "request 'req-1' is live"),
    errors.Unauthenticated("no key"),
    errors.PermissionDenied("not this model"),
    errors.RevisionMismatch("revisions differ", metadata={"ours": "a", "theirs": "b"}),
    errors.Overloaded("the queue is full", retry_after=timedelta(seconds=1.5)),
    errors.QuotaExceeded("tenant:t1", "60 requests per minute", retry_after=timedelta(seconds=2)),
    errors.SlowConsumer("64 messages behind"),
    errors.Cancelled("by the caller"),
    errors.DeadlineExceeded("no time left"),
    errors.NoWorker("none is healthy"),
    errors.WorkerLost("gone", metadata={"worker": "w1"}),
    errors.Draining("shutting down"),
    errors.LeaseExpired("lapsed"),
    errors.DataCorrupt("checksum"),
    errors.Internal("a bug"),
]


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_every_reason_has_a_row_and_a_class(reason: ErrorReason.ValueType) -> None:
    assert reason in TABLE
    assert errors.CLASSES[reason].reason == reason


def test_the_table_has_nothing_else() -> None:
    assert set(TABLE) == set(REASONS) == set(errors.CLASSES)
    assert {error.reason for error in EXAMPLES} == set(REASONS), "an example of each"


def test_the_protos_comment_is_the_table() -> None:
    proto = Path(error_pb2.__file__).with_name("error.proto").read_text(encoding="utf-8")
    written = {name: (code, retryable == "yes", fault) for name, code, retryable, fault in ROW.findall(proto)}
    ours = {
        errors.reason_name(reason): (row.code.name, row.retryable, row.fault.value) for reason, row in TABLE.items()
    }
    assert written == ours


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_round_trip(error: errors.WeirError) -> None:
    status = errors.to_status(error)
    back = errors.from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert isinstance(back, errors.RemoteError)
    assert isinstance(back, type(error)), "a handler of the class also sees it from afar"
    assert (back.reason, back.message, back.metadata) == (error.reason, error.message, error.metadata)
    assert back.retry_after == error.retry_after
    assert back.row == error.row
    assert errors.to_status(back) == status, "passing it on changes nothing"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_failure_is_the_same_bytes_as_a_status(error: errors.WeirError) -> None:
    back = errors.from_failure(errors.to_failure(error))
    assert errors.to_status(back) == errors.to_status(error)


def test_typed_details() -> None:
    quota = errors.to_status(EXAMPLES[11])
    violation, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(violation) for detail in quota.details)
    assert any(detail.Unpack(retry) for detail in quota.details)
    assert violation.violations[0].subject == "tenant:t1"
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=2)
    resource = error_details_pb2.ResourceInfo()
    assert any(detail.Unpack(resource) for detail in errors.to_status(EXAMPLES[4]).details)
    assert (resource.resource_type, resource.resource_name) == ("model", "m")


@given(st.text(max_size=4000), st.dictionaries(st.text(max_size=40), st.text(max_size=900), max_size=12))
def test_a_status_is_bounded_and_valid(message: str, metadata: dict[str, str]) -> None:
    error = errors.QuotaExceeded(message, message, retry_after=timedelta(seconds=1))
    error.metadata = metadata
    status = errors.to_status(error)
    assert len(status.message.encode()) <= MAX_ERROR_MESSAGE_BYTES
    assert status.ByteSize() <= MAX_STATUS_BYTES + 256
    assert isinstance(errors.from_status(status), errors.QuotaExceeded)


def rpc_error(code: StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> grpc.RpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (StatusCode.CANCELLED, errors.WorkerLost),  # a server that was stopping: one's own cancellation has no status
        (StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (StatusCode.UNAVAILABLE, errors.WorkerLost),
        (StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (StatusCode.UNKNOWN, errors.Internal),
        (StatusCode.INVALID_ARGUMENT, errors.Internal),
    ],
)
def test_a_strangers_status_is_judged_by_its_code(code: StatusCode, expected: type[errors.WeirError]) -> None:
    error = errors.from_rpc_error(rpc_error(code, "said a proxy"))
    assert type(error) is expected
    assert "said a proxy" in error.message


def test_details_that_contradict_the_status_do_not_count() -> None:
    rich = errors.to_status(errors.Overloaded("full")).SerializeToString()
    error = errors.from_rpc_error(rpc_error(StatusCode.UNAVAILABLE, "x", (("grpc-status-details-bin", rich),)))
    assert type(error) is errors.WorkerLost


def test_an_unknown_code_is_internal() -> None:
    assert type(errors.from_status(status_pb2.Status(code=99, message="?"))) is errors.Internal


def test_a_write_that_meets_the_end_of_its_call_is_a_lost_worker_and_nobodys_bug() -> None:
    """As `set_internal_error` of grpc.aio makes it: code, details and no trailing metadata."""
    error = errors.from_rpc_error(rpc_error(StatusCode.INTERNAL, "Internal error from Core"))
    assert isinstance(error, errors.WorkerLost)
    assert isinstance(errors.from_rpc_error(rpc_error(StatusCode.INTERNAL, "Internal error")), errors.Internal)


def test_foreign_error_info_is_not_ours() -> None:
    info = error_details_pb2.ErrorInfo(domain="googleapis.com", reason="OVERLOADED")
    status = status_pb2.Status(code=StatusCode.UNAVAILABLE.value[0])
    status.details.add().Pack(info)
    assert type(errors.from_status(status)) is errors.WorkerLost
