"""Operations → messages."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from weir.router.v1 import fleet_pb2 as pb
from weir_chassis.status import to_failure
from weir_router.operations.operation import Operation, Progress


def to_operation(operation: Operation) -> pb.Operation:
    started = Timestamp()
    started.FromNanoseconds(round(operation.started_at * 1e9))
    return pb.Operation(
        operation_id=operation.operation_id,
        action=operation.action,
        started_at=started,
        done=operation.done,
        executors=[_progress(target, progress) for target, progress in operation.targets.items()],
    )


def _progress(target: str, progress: Progress) -> pb.OperationProgress:
    return pb.OperationProgress(
        executor=target,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        done=progress.done,
        failure=None if progress.error is None else to_failure(progress.error),
    )
