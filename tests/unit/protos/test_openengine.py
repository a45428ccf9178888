"""Our words for `openengine.v1` against the published numbers, which a table beside this file records.

The table holds every message that we have a part of, so that a name of ours that is not theirs is found too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor as d

from weir.openengine.v1 import openengine_pb2 as pb

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("openengine_v1.json").read_text(encoding="utf-8"))
_SCALARS = {
    d.FieldDescriptor.TYPE_DOUBLE: "double",
    d.FieldDescriptor.TYPE_INT32: "int32",
    d.FieldDescriptor.TYPE_INT64: "int64",
    d.FieldDescriptor.TYPE_UINT32: "uint32",
    d.FieldDescriptor.TYPE_UINT64: "uint64",
    d.FieldDescriptor.TYPE_BOOL: "bool",
    d.FieldDescriptor.TYPE_STRING: "string",
    d.FieldDescriptor.TYPE_BYTES: "bytes",
}


def shape(field: d.FieldDescriptor) -> list[Any]:
    """Number, and type with its label, as the table has them."""
    named = field.message_type or field.enum_type
    kind = named.name if named else _SCALARS[field.type]
    group = field.containing_oneof
    synthetic = group is not None and len(group.fields) == 1 and group.name == f"_{field.name}"
    label = "repeated " if field.is_repeated else "optional " if synthetic else ""
    return [field.number, label + kind]


@pytest.mark.parametrize("name", list(pb.DESCRIPTOR.message_types_by_name))
def test_every_field_of_ours_is_one_of_theirs(name: str) -> None:
    ours = {field.name: shape(field) for field in pb.DESCRIPTOR.message_types_by_name[name].fields}
    theirs = PUBLISHED["messages"][name]
    assert {field: theirs.get(field) for field in ours} == ours


@pytest.mark.parametrize("name", list(pb.DESCRIPTOR.enum_types_by_name))
def test_every_value_of_an_enum_is_theirs_and_none_is_missing(name: str) -> None:
    """A value that we do not know is taken for unspecified: so we know all that there are."""
    values = pb.DESCRIPTOR.enum_types_by_name[name].values
    assert {value.name: value.number for value in values} == PUBLISHED["enums"][name]


@pytest.mark.parametrize("name", ["Inference", "Control"])
def test_every_call_of_ours_is_one_of_theirs(name: str) -> None:
    service = pb.DESCRIPTOR.services_by_name[name]
    assert service.full_name == f"openengine.v1.{name}"
    ours = {
        method.name: [method.input_type.name, ("stream " if method.server_streaming else "") + method.output_type.name]
        for method in service.methods
    }
    assert {method: PUBLISHED["services"][name].get(method) for method in ours} == ours


def test_what_we_leave_out_of_a_message_is_skipped_when_it_is_read() -> None:
    """Another's field 4 of a response, a `PrefillReady`: read as no event at all."""
    read = pb.GenerateResponse.FromString(b"\x0a\x01r\x22\x02\x0a\x00")
    assert (read.request_id, read.WhichOneof("event")) == ("r", None)
