from __future__ import annotations

import pytest

from weir.inference.v1 import guide_pb2 as pb
from weir_chassis.errors import InvalidArgument
from weir_executor.guided.guide import Guide, GuideKind, choice_guide
from weir_executor.guided.mapping import to_guide

_KIB = 1024


@pytest.mark.parametrize(
    ("asked", "guide"),
    [
        (pb.Guide(json_schema="{}"), Guide(GuideKind.JSON_SCHEMA, "{}")),
        (pb.Guide(json_object=pb.JsonObject()), Guide(GuideKind.JSON_OBJECT)),
        (pb.Guide(regex="a" * 8 * _KIB), Guide(GuideKind.REGEX, "a" * 8 * _KIB)),
        (pb.Guide(ebnf='root ::= "x"'), Guide(GuideKind.EBNF, 'root ::= "x"')),
        (pb.Guide(choice=pb.Choice(options=["a", "b"])), choice_guide(["a", "b"])),
        (pb.Guide(structural_tag="{}"), Guide(GuideKind.STRUCTURAL_TAG, "{}")),
    ],
)
def test_every_language(asked: pb.Guide, guide: Guide) -> None:
    assert to_guide(asked) == guide


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        (pb.Guide(), "sampling.guide", "names no language"),
        (pb.Guide(regex=""), "sampling.guide.regex", "0 bytes; 1 to 8192"),
        (pb.Guide(regex="é" * (4 * _KIB + 1)), "sampling.guide.regex", "8194 bytes; 1 to 8192"),
        (pb.Guide(json_schema=" " * (64 * _KIB + 1)), "sampling.guide.json_schema", "1 to 65536"),
        (pb.Guide(ebnf="#" * (64 * _KIB + 1)), "sampling.guide.ebnf", "1 to 65536"),
        (pb.Guide(structural_tag=" " * (64 * _KIB + 1)), "sampling.guide.structural_tag", "1 to 65536"),
        (pb.Guide(regex="a\0b"), "sampling.guide.regex", "NUL"),
        (pb.Guide(choice=pb.Choice()), "sampling.guide.choice.options", "0; 1 to 256"),
        (pb.Guide(choice=pb.Choice(options=["x"] * 257)), "sampling.guide.choice.options", "257; 1 to 256"),
        (pb.Guide(choice=pb.Choice(options=["x", ""])), "sampling.guide.choice.options[1]", "0 bytes"),
        (pb.Guide(choice=pb.Choice(options=["x" * 1025])), "sampling.guide.choice.options[0]", "1025 bytes"),
    ],
)
def test_every_limit(asked: pb.Guide, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        to_guide(asked)
    assert caught.value.field == field


def test_a_guide_says_nothing_of_itself_in_a_log() -> None:
    assert "secret" not in repr(Guide(GuideKind.REGEX, "secret"))
