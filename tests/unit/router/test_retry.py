"""The whole table: which error may be tried again elsewhere, and when."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2

from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis.errors import TABLE, WorkerLost, from_status, reason_name
from weir_router.retry import may_retry

RETRIED = {
    *("OVERLOADED", "NO_WORKER", "WORKER_LOST", "DRAINING", "LEASE_EXPIRED", "DATA_CORRUPT", "INTERNAL"),
    "NOT_FOUND",  # an adapter that this executor has no more
}


@pytest.mark.parametrize("reason", TABLE, ids=reason_name)
def test_only_what_another_worker_may_do_better_is_tried_again(reason: ErrorReason.ValueType) -> None:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason_name(reason), domain="weir"))
    error = from_status(status)
    assert error.reason == reason
    assert may_retry(error, 1, answering=False) == (reason_name(reason) in RETRIED)


def test_once_and_only_before_the_first_token() -> None:
    lost = WorkerLost("gone")
    assert may_retry(lost, 1, answering=False)
    assert not may_retry(lost, 1, answering=True)
    assert not may_retry(lost, 2, answering=False)
