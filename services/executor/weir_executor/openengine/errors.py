"""What the server's errors mean to whoever made the request. Pure.

Before it has accepted a request it answers with a status, afterwards with an event; and when it dies, with neither.
"""

from __future__ import annotations

from grpc import StatusCode

from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import Draining, Internal, InvalidArgument, Overloaded, Unsupported, WeirError, WorkerLost
from weir_executor.foreign.words import first_line


def from_status(code: StatusCode, details: str) -> WeirError:
    """UNAVAILABLE and what else a dying process or network says is retryable, on another worker."""
    said = first_line(details)
    match code:
        case StatusCode.INVALID_ARGUMENT | StatusCode.OUT_OF_RANGE:
            return InvalidArgument("request", f"the server refused it: {said}")
        case StatusCode.UNIMPLEMENTED:
            return Unsupported(f"the server refused it: {said}")
        case StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(f"the server refused it: {said}")
        case StatusCode.UNAVAILABLE | StatusCode.CANCELLED | StatusCode.DEADLINE_EXCEEDED | StatusCode.ABORTED:
            return WorkerLost(f"the server was lost: {code.name}")
    # What is left is between the server and us: an id that lives, a model that it lost, a key that it refuses.
    return Internal(f"the server failed the request: {code.name}: {said}")


def from_event(error: pb.EngineError) -> WeirError:
    """A server that drains or has no room is not at fault; most else is."""
    said = first_line(error.message)
    match error.code:
        case pb.ERROR_CODE_INVALID_ARGUMENT:
            return InvalidArgument("request", f"the server failed it: {said}")
        case pb.ERROR_CODE_UNSUPPORTED_FEATURE:
            return Unsupported(f"the server failed it: {said}")
        case pb.ERROR_CODE_OVERLOADED:
            return Overloaded(f"the server failed it: {said}")
        case pb.ERROR_CODE_DRAINING:
            return Draining("the server drains")
        case pb.ERROR_CODE_CANCELLED:
            return WorkerLost("the server cancelled the request")
    known = error.code in pb.ErrorCode.values()
    return Internal(f"the server failed the request: {pb.ErrorCode.Name(error.code) if known else error.code}: {said}")
