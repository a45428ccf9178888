"""The contract of retained streams, kept by one router, and by two that share theirs through Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from contract import retained_contract
from contract.retained_contract import Check, Place, ScriptedRuns
from weir_chassis.background import Background
from weir_chassis.clock import SystemClock
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.testing import assert_no_leases
from weir_router.metrics import RouterMetrics
from weir_router.retained.options import RetentionLimits
from weir_router.retained.requests import RetainedRequests

LIMITS = RetentionLimits(
    max_seconds=3600.0, default_seconds=60.0, max_streams=64, max_bytes=1 << 20, max_stream_bytes=1 << 18
)


@asynccontextmanager
async def one_router() -> AsyncIterator[Place]:
    pipeline, ledger, clock = ScriptedRuns(), LeaseLedger(), SystemClock()
    background = Background()
    requests = RetainedRequests(
        pipeline.run,
        LIMITS,
        clock=clock,
        leases=ledger,
        background=background,
        metrics=RouterMetrics(Metrics("router")),
    )
    with closing(requests):
        async with background:
            background.start(requests.sweep(), name="sweep")
            yield Place(requests, requests, pipeline, ledger.counts)
    assert background.failure is None
    assert_no_leases(ledger)


@pytest.mark.parametrize("check", retained_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_one_router(check: Check) -> None:
    async with one_router() as at:
        await check(at)
