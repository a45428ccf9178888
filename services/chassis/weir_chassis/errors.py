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

A service raises these; what a caller sees of one, and how it becomes one again there, is `status.py`.
"""

# ruff: noqa: N818  # an error is named for what is wrong; the suffix would say "error" twenty times

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import ClassVar

from google.protobuf.message import Message
from google.rpc import error_details_pb2

from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis.fault_table import TABLE, Row
from weir_chassis.limits import MAX_ERROR_MESSAGE_BYTES


class WeirError(Exception):
    """An error with a place in the table. `message` is safe to show to a client; it never holds a prompt."""

    reason: ClassVar[ErrorReason.ValueType]

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after: timedelta | None = None
    ):
        super().__init__(message)
        self.message = cut(message, MAX_ERROR_MESSAGE_BYTES)
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


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The reason as `ErrorInfo.reason` carries it: `OVERLOADED`."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def cut(text: str, limit_bytes: int) -> str:
    """The text as valid UTF-8 of at most this many bytes."""
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _leaves(of: type[WeirError]) -> Iterator[type[WeirError]]:
    for cls in of.__subclasses__():
        if "reason" in vars(cls):
            yield cls
        yield from _leaves(cls)


CLASSES: Mapping[ErrorReason.ValueType, type[WeirError]] = {cls.reason: cls for cls in _leaves(WeirError)}
