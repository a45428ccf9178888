"""The tenant that a call names."""

from __future__ import annotations

import pytest

from weir_chassis.errors import InvalidArgument
from weir_chassis.tenant import tenant_from, tenant_metadata


def test_it_comes_as_it_was_sent() -> None:
    assert tenant_from([("other", "x"), *tenant_metadata("acme")]) == "acme"
    assert tenant_from(tenant_metadata("x" * 128)) == "x" * 128


def test_none_is_none() -> None:
    assert tenant_metadata("") == ()
    assert tenant_from(None) == tenant_from([]) == ""


@pytest.mark.parametrize(("tenant", "words"), [("x" * 129, "128 bytes"), ("a\nb", "printable"), (b"acme", "printable")])
def test_what_is_no_name_is_refused(tenant: str | bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=f"weir-tenant: .*{words}"):
        tenant_from([("weir-tenant", tenant)])
