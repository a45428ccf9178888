"""Who an experiment is about: a request's subject keeps its arm. Pure."""

from __future__ import annotations

from typing import Final

from weir_chassis.errors import InvalidArgument
from weir_chassis.telemetry import Metadata

SUBJECT_KEY: Final = "weir-subject"
# A name, as a session is one.
_MAX_SUBJECT_BYTES: Final = 128


def subject_from(metadata: Metadata | None, session: str = "") -> str:
    """Whom a call's metadata names, else its session; empty for neither. Raises InvalidArgument."""
    subject = next((value for key, value in metadata or () if key == SUBJECT_KEY), session)
    if not isinstance(subject, str) or not subject.isprintable():
        raise InvalidArgument(SUBJECT_KEY, "must be printable text")
    if len(subject.encode()) > _MAX_SUBJECT_BYTES:
        raise InvalidArgument(SUBJECT_KEY, f"longer than {_MAX_SUBJECT_BYTES} bytes")
    return subject
