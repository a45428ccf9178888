"""The classes of errors, the table of reasons and the proto's comment say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference.v1 import error_pb2
from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis import errors
from weir_chassis.fault_table import TABLE

REASONS = [reason for reason in ErrorReason.values() if reason != ErrorReason.ERROR_REASON_UNSPECIFIED]
ROW = re.compile(r"^//   ([A-Z_]+) +([A-Z_]+) +(yes|no) +(client|server|none)\b", re.MULTILINE)


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_every_reason_has_a_row_and_a_class(reason: ErrorReason.ValueType) -> None:
    assert reason in TABLE
    assert errors.CLASSES[reason].reason == reason


def test_the_table_has_nothing_else() -> None:
    assert set(TABLE) == set(REASONS) == set(errors.CLASSES)


def test_the_protos_comment_is_the_table() -> None:
    proto = Path(error_pb2.__file__).with_name("error.proto").read_text(encoding="utf-8")
    written = {name: (code, retryable == "yes", fault) for name, code, retryable, fault in ROW.findall(proto)}
    ours = {
        errors.reason_name(reason): (row.code.name, row.retryable, row.fault.value) for reason, row in TABLE.items()
    }
    assert written == ours


@given(st.text(max_size=4000), st.integers(0, 40))
def test_what_is_cut_is_a_beginning_of_the_text_and_ends_between_characters(text: str, limit_bytes: int) -> None:
    sound = text.encode(errors="replace").decode()
    short = errors.cut(text, limit_bytes)
    assert sound.startswith(short)
    assert limit_bytes - 4 < len(short.encode()) <= limit_bytes or short == sound
