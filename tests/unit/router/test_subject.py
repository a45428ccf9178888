from __future__ import annotations

import pytest

from weir_chassis.errors import InvalidArgument
from weir_router.models.subject import subject_from


def test_a_subject_is_named_by_the_call_else_by_its_session() -> None:
    named = (("weir-tenant", "acme"), ("weir-subject", "user-7"))
    assert subject_from(named, "s") == "user-7"
    assert subject_from((), "s") == subject_from(None, "s") == "s"
    assert subject_from(None) == ""


@pytest.mark.parametrize("value", ["x" * 129, "é" * 65, "a\nb", b"bytes"])
def test_a_subject_that_is_no_name_is_refused(value: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match="weir-subject"):
        subject_from((("weir-subject", value),))
