"""The whole table of faults: every reason, wherever it is met."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2

from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.fault_table import TABLE as REASONS
from weir_chassis.fault_table import Fault
from weir_chassis.status import from_status
from weir_router.faults.table import TABLE, Where, before_or_after, verdict

BEFORE, AFTER = Where.BEFORE_FIRST_TOKEN, Where.AFTER_FIRST_TOKEN

ELSEWHERE = {
    *("OVERLOADED", "NO_WORKER", "WORKER_LOST", "DRAINING", "LEASE_EXPIRED", "DATA_CORRUPT", "INTERNAL"),
    *("NOT_FOUND", "MODEL_NOT_FOUND", "REVISION_MISMATCH"),  # what this worker has no more, and another may have
}
COUNTS = {"WORKER_LOST", "DATA_CORRUPT", "INTERNAL", "REVISION_MISMATCH"}
BILLED = {"CANCELLED", "DEADLINE_EXCEEDED", "SLOW_CONSUMER", "QUOTA_EXCEEDED"}

each_reason = pytest.mark.parametrize("reason", REASONS, ids=reason_name)
each_where = pytest.mark.parametrize("where", Where, ids=lambda where: where.value)


def error_of(reason: ErrorReason.ValueType) -> WeirError:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason_name(reason), domain="weir"))
    return from_status(status)


def test_there_is_a_verdict_for_every_reason_everywhere() -> None:
    assert set(TABLE) == {(reason, where) for reason in REASONS for where in Where}


@each_reason
def test_only_what_another_worker_may_do_better_is_tried_elsewhere(reason: ErrorReason.ValueType) -> None:
    for where in (BEFORE, AFTER, Where.CONNECTION, Where.DRAIN):
        assert verdict(error_of(reason), where).elsewhere == (reason_name(reason) in ELSEWHERE)


@each_reason
def test_what_counts_against_a_worker(reason: ErrorReason.ValueType) -> None:
    for where in (BEFORE, AFTER):
        assert verdict(error_of(reason), where).counts == (reason_name(reason) in COUNTS)


@each_reason
@each_where
def test_no_fault_but_the_servers_counts_against_a_worker(reason: ErrorReason.ValueType, where: Where) -> None:
    if REASONS[reason].fault is not Fault.SERVER and where is not Where.STALL:
        assert not TABLE[reason, where].counts
    if reason == ErrorReason.ERROR_REASON_OVERLOADED or REASONS[reason].fault is Fault.CLIENT:
        assert not TABLE[reason, where].counts, "not even where it is met by a worker that is silent"


@each_reason
def test_neither_a_drain_nor_who_cannot_be_reached_counts(reason: ErrorReason.ValueType) -> None:
    assert not TABLE[reason, Where.DRAIN].counts
    assert not TABLE[reason, Where.CONNECTION].counts


@each_reason
def test_a_client_pays_for_what_it_was_given_when_the_end_is_its_own_doing(reason: ErrorReason.ValueType) -> None:
    assert TABLE[reason, AFTER].billed == (reason_name(reason) in BILLED)
    assert not TABLE[reason, BEFORE].billed, "nothing was given"


@each_reason
def test_whoever_is_billed_is_not_also_served_elsewhere(reason: ErrorReason.ValueType) -> None:
    assert not (TABLE[reason, AFTER].billed and TABLE[reason, AFTER].elsewhere)


def test_the_routers_own_timer_is_a_lost_worker_and_the_clients_is_nobodys_fault() -> None:
    deadline, lost = ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_WORKER_LOST
    assert TABLE[deadline, Where.STALL] == TABLE[lost, Where.STALL]
    assert TABLE[lost, Where.STALL].counts
    assert not TABLE[deadline, BEFORE].elsewhere
    assert not TABLE[deadline, AFTER].counts


def test_a_drain_is_free_of_charge_and_an_overload_is_not() -> None:
    assert not TABLE[ErrorReason.ERROR_REASON_DRAINING, BEFORE].charged
    assert not TABLE[ErrorReason.ERROR_REASON_WORKER_LOST, Where.DRAIN].charged
    assert TABLE[ErrorReason.ERROR_REASON_OVERLOADED, BEFORE].charged, "else a full fleet is asked twice for everything"


def test_before_and_after_the_first_token() -> None:
    assert [before_or_after(answering=answering) for answering in (False, True)] == [BEFORE, AFTER]
