from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from weir_chassis.telemetry import name_request


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """structlog's own default draws each traceback with colours and locals, which takes most of a test's time."""
    structlog.configure(
        processors=[name_request, structlog.processors.JSONRenderer(default=repr)],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    yield
    structlog.reset_defaults()
