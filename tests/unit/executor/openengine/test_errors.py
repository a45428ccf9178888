from __future__ import annotations

import pytest
from grpc import StatusCode

from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.fault_table import Fault
from weir_executor.openengine.errors import from_event, from_status

_STATUS = {
    StatusCode.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    StatusCode.OUT_OF_RANGE: "INVALID_ARGUMENT",
    StatusCode.UNIMPLEMENTED: "UNSUPPORTED",
    StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED",
    StatusCode.UNAVAILABLE: "WORKER_LOST",
    StatusCode.CANCELLED: "WORKER_LOST",
    StatusCode.DEADLINE_EXCEEDED: "WORKER_LOST",
    StatusCode.ABORTED: "WORKER_LOST",
}
_EVENT = {
    pb.ERROR_CODE_INVALID_ARGUMENT: "INVALID_ARGUMENT",
    pb.ERROR_CODE_UNSUPPORTED_FEATURE: "UNSUPPORTED",
    pb.ERROR_CODE_OVERLOADED: "OVERLOADED",
    pb.ERROR_CODE_DRAINING: "DRAINING",
    pb.ERROR_CODE_CANCELLED: "WORKER_LOST",
}
_SAID = "why\nand a prompt in its second line"


@pytest.mark.parametrize("code", StatusCode)
def test_a_status_and_whose_fault_it_is(code: StatusCode) -> None:
    error = from_status(code, _SAID)
    assert reason_name(error.reason) == _STATUS.get(code, "INTERNAL")
    assert (error.row.fault is Fault.CLIENT) == (_STATUS.get(code) in ("INVALID_ARGUMENT", "UNSUPPORTED"))
    assert "second line" not in error.message


@pytest.mark.parametrize("code", [*pb.ErrorCode.values(), 99])
def test_an_event_and_whose_fault_it_is(code: pb.ErrorCode.ValueType) -> None:
    error = from_event(pb.EngineError(code=code, message=_SAID))
    assert reason_name(error.reason) == _EVENT.get(code, "INTERNAL")
    assert (error.row.fault is Fault.CLIENT) == (_EVENT.get(code) in ("INVALID_ARGUMENT", "UNSUPPORTED"))
    assert "second line" not in error.message
