"""An error on its way to a caller and back, and a stranger's status."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis import errors
from weir_chassis.limits import MAX_ERROR_MESSAGE_BYTES, MAX_STATUS_BYTES
from weir_chassis.status import RemoteError, from_failure, from_rpc_error, from_status, to_failure, to_status

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


def test_there_is_an_example_of_each() -> None:
    assert {error.reason for error in EXAMPLES} == set(errors.CLASSES)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_round_trip(error: errors.WeirError) -> None:
    status = to_status(error)
    back = from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert isinstance(back, RemoteError)
    assert isinstance(back, type(error)), "a handler of the class also sees it from afar"
    assert (back.reason, back.message, back.metadata) == (error.reason, error.message, error.metadata)
    assert back.retry_after == error.retry_after
    assert back.row == error.row
    assert to_status(back) == status, "passing it on changes nothing"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_failure_is_the_same_bytes_as_a_status(error: errors.WeirError) -> None:
    back = from_failure(to_failure(error))
    assert to_status(back) == to_status(error)


def test_typed_details() -> None:
    quota = to_status(EXAMPLES[11])
    violation, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(violation) for detail in quota.details)
    assert any(detail.Unpack(retry) for detail in quota.details)
    assert violation.violations[0].subject == "tenant:t1"
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=2)
    resource = error_details_pb2.ResourceInfo()
    assert any(detail.Unpack(resource) for detail in to_status(EXAMPLES[4]).details)
    assert (resource.resource_type, resource.resource_name) == ("model", "m")


@given(st.text(max_size=4000), st.dictionaries(st.text(max_size=40), st.text(max_size=900), max_size=12))
def test_a_status_is_bounded_and_valid(message: str, metadata: dict[str, str]) -> None:
    error = errors.QuotaExceeded(message, message, retry_after=timedelta(seconds=1))
    error.metadata = metadata
    status = to_status(error)
    assert len(status.message.encode()) <= MAX_ERROR_MESSAGE_BYTES
    assert status.ByteSize() <= MAX_STATUS_BYTES + 256
    assert isinstance(from_status(status), errors.QuotaExceeded)


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
    error = from_rpc_error(rpc_error(code, "said a proxy"))
    assert type(error) is expected
    assert "said a proxy" in error.message


def test_details_that_contradict_the_status_do_not_count() -> None:
    rich = to_status(errors.Overloaded("full")).SerializeToString()
    error = from_rpc_error(rpc_error(StatusCode.UNAVAILABLE, "x", (("grpc-status-details-bin", rich),)))
    assert type(error) is errors.WorkerLost


def test_an_unknown_code_is_internal() -> None:
    assert type(from_status(status_pb2.Status(code=99, message="?"))) is errors.Internal


def test_a_write_that_meets_the_end_of_its_call_is_a_lost_worker_and_nobodys_bug() -> None:
    """As `set_internal_error` of grpc.aio makes it: code, details and no trailing metadata."""
    error = from_rpc_error(rpc_error(StatusCode.INTERNAL, "Internal error from Core"))
    assert isinstance(error, errors.WorkerLost)
    assert isinstance(from_rpc_error(rpc_error(StatusCode.INTERNAL, "Internal error")), errors.Internal)


def test_foreign_error_info_is_not_ours() -> None:
    info = error_details_pb2.ErrorInfo(domain="googleapis.com", reason="OVERLOADED")
    status = status_pb2.Status(code=StatusCode.UNAVAILABLE.value[0])
    status.details.add().Pack(info)
    assert type(from_status(status)) is errors.WorkerLost
