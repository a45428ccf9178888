"""Whose request a call is. There is no authentication yet: it is what the caller says of itself."""

from __future__ import annotations

from typing import Final

from weir_chassis.errors import InvalidArgument
from weir_chassis.telemetry import Metadata

TENANT_KEY: Final = "weir-tenant"
# A name; it is kept beside each of its requests.
MAX_TENANT_BYTES: Final = 128


def tenant_from(metadata: Metadata | None) -> str:
    """The tenant that a call's metadata names; empty when it names none. Raises InvalidArgument."""
    tenant = next((value for key, value in metadata or () if key == TENANT_KEY), "")
    if not isinstance(tenant, str) or not tenant.isprintable():
        raise InvalidArgument(TENANT_KEY, "must be printable text")
    if len(tenant.encode()) > MAX_TENANT_BYTES:
        raise InvalidArgument(TENANT_KEY, f"longer than {MAX_TENANT_BYTES} bytes")
    return tenant


def tenant_metadata(tenant: str) -> tuple[tuple[str, str], ...]:
    """What a client sends along: `stub.Method(…, metadata=tenant_metadata("acme"))`. Raises as `tenant_from` does."""
    return ((TENANT_KEY, tenant_from([(TENANT_KEY, tenant)])),) if tenant else ()
