from __future__ import annotations

import pytest

from weir_chassis.errors import InvalidArgument
from weir_router.providers.via import VIA_KEY, via_from, via_metadata


def test_each_router_adds_itself() -> None:
    first = via_metadata((), "a")
    second = via_metadata(via_from(first), "b")
    assert via_from(second) == ("a", "b")
    assert via_from(None) == via_from([("other", "x")]) == ()


@pytest.mark.parametrize("value", ["a\nb", "x" * 1025, b"bytes"])
def test_what_is_no_list_of_ids_is_refused(value: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match=VIA_KEY):
        via_from([(VIA_KEY, value)])
